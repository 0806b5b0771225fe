// The forward proxy's configuration: rules and their order, dfdaemon's words, files on disk, and hostile URLs.
import { chmodSync, readFileSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { assert, constant, domain, integer, oneof, property, string, tuple, webUrl } from 'fast-check'
import { parse as parseYaml } from 'yaml'
import { forwardOptions, readForwardConfig } from '../../node/config/forward-settings.ts'
import { ForwardAccess, readUsers } from '../../registry-proxy/forward/forward-access.ts'
import { forwardConfig } from '../../registry-proxy/forward/forward-config.ts'
import { absoluteUrl, connectAuthority, ForwardRules, MAX_URL_LENGTH } from '../../registry-proxy/forward/forward-target.ts'
import { ROOT } from '../node/run-cli.ts'
import { ForwardLab } from './forward-lab.ts'

let lab: ForwardLab
beforeEach(() => {
  lab = new ForwardLab()
})
afterEach(() => lab.end())

const target = (config: unknown, url: string): [string, string] => {
  const { url: found, through } = new ForwardRules(forwardConfig(config)).target(new URL(url))
  return [through, found.href]
}

describe('rules', () => {
  test('the first that matches holds', () => {
    const config = { rules: [{ match: 'blobs/sha256.*', through: 'swarm' }, { match: 'registry\\.example', through: 'refuse' }] }
    expect(target(config, 'https://registry.example/v2/a/blobs/sha256:00')).toEqual(['swarm', 'https://registry.example/v2/a/blobs/sha256:00'])
    expect(target(config, 'https://registry.example/v2/')).toEqual(['refuse', 'https://registry.example/v2/'])
    expect(target(config, 'https://other.example/')).toEqual(['direct', 'https://other.example/'])
    expect(target({ ...config, otherwise: 'refuse' }, 'https://other.example/')[0]).toBe('refuse')
  })

  test.each([
    [{ redirect: 'b.example:5000' }, 'http://a.example:8080/x?y', 'http://b.example:5000/x?y'],
    [{ redirect: 'b.example' }, 'http://a.example:8080/x', 'http://b.example/x'],
    [{ redirect: 'b.example:443', 'use-https': true }, 'http://a.example/x', 'https://b.example/x'],
    [{ 'use-https': true }, 'http://a.example/x', 'https://a.example/x'],
    [{ 'use-https': true }, 'http://a.example:8080/x', 'https://a.example:8080/x'],
    [{ redirect: '[::1]:5000' }, 'https://a.example/x', 'https://[::1]:5000/x'],
  ])('%j makes of %s: %s', (rule, from, to) => {
    expect(target({ rules: [{ match: 'a', through: 'direct', ...rule }] }, from)).toEqual(['direct', to])
  })

  test('a rule is not got round by escapes that mean nothing', () => {
    const rules = { rules: [{ match: '/ads-1\\.0~', through: 'refuse' }, { match: '%2F', through: 'direct' }], otherwise: 'swarm' }
    for (const path of ['/ads-1.0~', '/%61ds-1.0~', '/%61%64%73%2d%31%2E%30%7e']) expect([path, target(rules, `http://x${path}`)]).toEqual([path, ['refuse', `http://x${path}`]])
    expect(target(rules, 'http://x/a%2Fds')[0]).toBe('direct')
    // An escaped escape is another name.
    expect(target(rules, 'http://x/%2561ds-1.0~')[0]).toBe('swarm')
    const all = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => target({ rules: [{ match: `^http://x/[A-Za-z0-9._~-]z$`, through: 'direct' }], otherwise: 'refuse' }, `http://x/%${byte.toString(16).padStart(2, '0')}z`)[0] === 'direct')
    expect(String.fromCharCode(...all)).toMatch(/^-\.[0-9]{10}[A-Z]{26}_[a-z]{26}~$/)
  })

  test('a tunnel is ruled by where it goes', () => {
    const rules = new ForwardRules(forwardConfig({ rules: [{ match: '^https://bad\\.example/', through: 'refuse' }, { match: '^https://old\\.example/', redirect: 'new.example:8443' }] }))
    expect(rules.tunnel('bad.example', 443)).toMatchObject({ refused: true })
    expect(rules.tunnel('bad.example', 8443)).toMatchObject({ refused: false, port: 8443 })
    expect(rules.tunnel('old.example', 443)).toEqual({ host: 'new.example', port: 8443, refused: false })
    expect(rules.tunnel('[::1]', 443)).toEqual({ host: '[::1]', port: 443, refused: false })
  })

  test('an expression that would take for ever elsewhere is done at once', () => {
    const rules = new ForwardRules(forwardConfig({ rules: [{ match: '(a+)+$' }, { match: '(a|a)*b' }, { match: '(.*.*)*=x' }, { match: '(?:a?){100}a{100}' }] }))
    const url = new URL(`http://x/${'a'.repeat(MAX_URL_LENGTH - 20)}!`)
    // Backtracking would not come back from any of them before the test's own time is up.
    expect(rules.target(url).through).toBe('swarm')
    expect(rules.target(new URL('http://x/ccc')).through).toBe('direct')
  })

  test('whatever a client sends as a URL is answered, and keeps to the URL that the rules saw', () => {
    assert(property(oneof(webUrl({ withQueryParameters: true, withFragments: true }), string().map((text) => `http://${text}`), string()), (text) => {
      let url: URL
      try {
        url = absoluteUrl(text)
      } catch (error) {
        expect(error).toMatchObject({ code: expect.stringMatching(/^(?:INVALID_ARGUMENT|LIMIT_EXCEEDED)$/) })
        return
      }
      expect(url.href).toMatch(/^https?:\/\/[^/@\s]+\//)
      expect(new URL(`${url.protocol}//${url.host}${url.pathname}${url.search}`).host).toBe(url.host)
    }))
  })

  test('whatever a client sends to CONNECT to', () => {
    assert(property(oneof(string(), tuple(domain(), integer({ min: -5, max: 70_000 })).map(([host, port]) => `${host}:${port}`)), (text) => {
      try {
        const { host, port } = connectAuthority(text)
        expect(new URL(`https://${host}:${port}/`).hostname).not.toBe('')
      } catch (error) {
        expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' })
      }
    }))
  })
})

describe("dfdaemon's words", () => {
  test('mean the same', () => {
    const config = forwardConfig({
      proxies: [{ regx: 'blobs/sha256.*' }, { regx: 'no-proxy-reg', direct: true }, { regx: 'some-registry', redirect: 'another-registry' }, { regx: 'http-registry', use_https: true }],
      hijack_https: { cert: 'df.crt', key: 'df.key', hosts: [{ regx: 'mirror.example.com:443' }, { regx: 'x', insecure: true, certs: ['server.crt'] }] },
      'connect-ports': 'any',
    })
    expect(config.rules.map(({ match, ...rest }) => ({ match: match.pattern(), ...rest }))).toEqual([
      { match: 'blobs/sha256.*', through: 'swarm', 'use-https': false },
      { match: 'no-proxy-reg', through: 'direct', 'use-https': false },
      { match: 'some-registry', through: 'swarm', redirect: 'another-registry', 'use-https': false },
      { match: 'http-registry', through: 'swarm', 'use-https': true },
    ])
    expect(config.intercept).toMatchObject({ cert: 'df.crt', key: 'df.key', hosts: [{ insecure: false }, { insecure: true, ca: 'server.crt' }] })
  })

  test('but not twice', () => {
    expect(() => forwardConfig({ proxies: [], rules: [] })).toThrow(/says the same twice/)
  })
})

test('the examples in the document are accepted', () => {
  const document = readFileSync(`${ROOT}docs/forward-proxy.md`, 'utf8')
  const [node, rules] = [...document.matchAll(/```yaml\n([^]*?)```/g)].map(([, yaml]) => parseYaml(yaml) as object)
  expect(Object.keys((node as { proxy: object }).proxy)).toEqual(['listen', 'forward-listen', 'forward-config'])
  const config = forwardConfig(rules)
  expect(target(rules, 'https://mirror.example/pool/a.deb')[0]).toBe('swarm')
  expect(target(rules, 'http://old.example/x')).toEqual(['direct', 'https://new.example:8443/x'])
  expect(target(rules, 'http://ads.example/')[0]).toBe('refuse')
  expect(config.intercept!.hosts).toHaveLength(1)
})

describe('what is wrong is named', () => {
  test.each([
    [{ rules: [{ match: '(' }] }, /rules\.0\.match: "\(" is not a regular expression/],
    [{ rules: [{ match: '(?=x)' }] }, /rules\.0\.match/],
    [{ rules: [{ match: 'a', through: 'maybe' }] }, /rules\.0\.through/],
    [{ rules: [{ match: 'a', redirect: 'http://x/' }] }, /rules\.0\.redirect: must be HOST or HOST:PORT/],
    [{ rule: [] }, /Unrecognized key: "rule"/],
    [{ 'connect-ports': [0] }, /connect-ports/],
    [{ 'allow-clients': ['10.0.0.0/33'] }, /allow-clients\.0/],
    [{ intercept: { cert: 'a', key: 'b', hosts: [] } }, /intercept\.hosts/],
    [{ proxies: [{ match: 'x' }] }, /proxies\.0/],
    ['rules', /configuration is wrong/],
  ])('%j', (config, words) => {
    expect(() => forwardConfig(config)).toThrow(words)
  })

  test('also in files', () => {
    const yaml = lab.file('forward.yaml', 'rules:\n  - match: [')
    expect(() => readForwardConfig(yaml)).toThrow(/forward\.yaml is not YAML/)
    expect(() => readForwardConfig(`${yaml}.gone`)).toThrow(/cannot be read: ENOENT/)
    const { certFile, keyFile } = lab.certificate('authority', { authority: true })
    const open = lab.file('open.yaml', `intercept:\n  cert: authority.pem\n  key: authority.key\n  hosts: [{match: x}]\n`)
    expect(readForwardConfig(open).intercept!.key).toMatch(/PRIVATE KEY/)
    chmodSync(keyFile, 0o644)
    expect(() => readForwardConfig(open)).toThrow(/can be read by everybody/)
    expect(certFile).toMatch(/authority\.pem$/)
  })

  test('a file of users', () => {
    expect(readUsers('# people\n\nann:a:b c\r\nbob:x\n', 'f')).toEqual(['ann:a:b c', 'bob:x'])
    expect(() => readUsers('ann\n', 'f')).toThrow('f: line 1 is not NAME:PASSWORD')
    expect(() => readUsers('ann:$apr1$x$y\n', 'f')).toThrow(/holds a hash as htpasswd writes it/)
    expect(() => readUsers('\n', 'f')).toThrow(/names no user/)
    const users = lab.file('users', 'ann:one two\n')
    chmodSync(users, 0o600)
    expect(forwardOptions({ 'proxy.forward-listen': undefined, 'proxy.forward-config': undefined, 'proxy.basic-auth-file': users }, { host: '127.0.0.1', port: 0 }).users).toEqual(['ann:one two'])
  })
})

describe('who may use it', () => {
  test('this machine alone, unless said otherwise or passwords are asked for', () => {
    const alone = new ForwardAccess({})
    expect(['127.0.0.1', '127.8.9.1', '::1', '::ffff:127.0.0.1'].every((address) => alone.fromHere(address))).toBe(true)
    expect(['10.0.0.1', '::ffff:10.0.0.1', 'fe80::1%eth0', undefined].some((address) => alone.fromHere(address))).toBe(false)
    expect(new ForwardAccess({ users: ['a:b'] }).fromHere('10.0.0.1')).toBe(true)
    const some = new ForwardAccess({ networks: ['10.1.0.0/16', 'fd00::/8'], users: ['a:b'] })
    expect([some.fromHere('10.1.255.1'), some.fromHere('fd12::1'), some.fromHere('10.2.0.1'), some.fromHere('127.0.0.1')]).toEqual([true, true, false, false])
  })

  test('a password is known or it is not', () => {
    const access = new ForwardAccess({ users: ['ann:p:w', 'bøb:ü'] })
    const basic = (text: string): string => `Basic ${Buffer.from(text).toString('base64')}`
    expect([basic('ann:p:w'), `basic  ${basic('bøb:ü').slice(6)}`].map((header) => access.isUser(header))).toEqual([true, true])
    assert(property(oneof(string(), string().map(basic), constant(undefined)), (header) => access.isUser(header) === (header === basic('ann:p:w') || header === basic('bøb:ü'))))
  })
})
