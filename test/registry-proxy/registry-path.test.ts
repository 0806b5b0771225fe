// A registry's name in a repository's path, there and back.
import { describe, expect, test } from '@jest/globals'
import { array, assert, constantFrom, integer, option, property, stringMatching, tuple } from 'fast-check'
import { registryPath, splitRegistryPath } from '../../registry-proxy/registry-path.ts'

const label = stringMatching(/^[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?$/)
const registry = tuple(array(label, { minLength: 1, maxLength: 4 }), option(integer({ min: 1, max: 65_535 }), { nil: undefined }))
  .map(([labels, port]) => labels.join('.') + (port === undefined ? '' : `:${port}`))
  .filter((name) => name.includes('.') || name.includes(':') || name === 'localhost')

describe('a registry in a path', () => {
  test('every registry comes back as it was', () => {
    assert(property(registry, constantFrom('library/debian', 'a/b/c', 'x'), (name, repository) => {
      expect(splitRegistryPath(`${registryPath(name)}/${repository}`)).toEqual({ registry: name, repository })
    }))
  })

  test('what podman would accept as a path component', () => {
    const component = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/
    assert(property(registry, (name) => component.test(registryPath(name))))
  })

  test.each(['library/debian', 'team/app', 'debian', '/debian', 'quay.io/', '../etc/passwd', '.io/x', 'a_b.io/x', '__5000/x', 'quay.io__999999/x', '[::1]/x', `${'a'.repeat(300)}.io/x`])('%j names no registry', (name) => {
    expect(splitRegistryPath(name)).toBeUndefined()
  })

  test.each(['[::1]:5000', 'user@quay.io', 'quay.io/team', '', '-x.io', 'http://quay.io'])('%j cannot be written as a path', (name) => {
    expect(() => registryPath(name)).toThrow(/not HOST or HOST:PORT/)
  })
})
