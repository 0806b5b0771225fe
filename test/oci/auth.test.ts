// Logging in with tokens: a registry that sends clients to a token server, as Docker Hub and most others do.
import { afterEach, describe, expect, test } from '@jest/globals'
import { firstCredentials, staticCredentials } from '../../oci/credentials.ts'
import type { CredentialSource } from '../../oci/credentials.ts'
import { parseChallenges } from '../../oci/challenge.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { startHost } from './http-fixture.ts'
import type { Answer, FakeHost } from './http-fixture.ts'

const cleanups: (() => Promise<void>)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup()
})

interface TokenWorld {
  registry: FakeHost
  tokens: FakeHost
  accepted: Set<string>
  client(credentials?: CredentialSource): RegistryClient
}

/** A registry that takes the tokens in `accepted`, and a token server that `answer`s. */
async function tokenWorld(answer: Answer): Promise<TokenWorld> {
  const accepted = new Set<string>()
  const tokens = await startHost(answer)
  cleanups.push(() => tokens.stop())
  const registry = await startHost((request, response) => {
    if (accepted.has((request.headers.authorization ?? '').replace('Bearer ', ''))) response.end('{"schemaVersion": 2, "manifests": []}')
    else {
      const repository = /^\/v2\/(.+)\/manifests/.exec(request.url!)?.[1]
      response.writeHead(401, { 'www-authenticate': `Bearer realm="${tokens.url}/token?kept=1",service="the, \\"registry\\"",scope="repository:${repository}:pull"` }).end('{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}')
    }
  })
  cleanups.push(() => registry.stop())
  return {
    registry, tokens, accepted,
    client(credentials) {
      const made = new RegistryClient(credentials === undefined ? {} : { credentials }, { backoffMs: 5 })
      cleanups.push(() => made.close())
      return made
    },
  }
}
const ask = (client: RegistryClient, world: TokenWorld, repository = 'team/app') => client.manifest(parseReference(`${world.registry.host}/${repository}:1`))

describe('bearer tokens', () => {
  test('are got anonymously, once, and used until they expire', async () => {
    const world = await tokenWorld((_request, response, count) => {
      world.accepted.add(`anonymous-${count}`)
      response.end(JSON.stringify({ token: `anonymous-${count}`, expires_in: 300 }))
    })
    const client = world.client()
    await Promise.all(Array.from({ length: 8 }, () => ask(client, world)))
    await ask(client, world)
    expect(world.tokens.requests).toHaveLength(1)
    const asked = new URL(world.tokens.requests[0].url, world.tokens.url)
    expect(Object.fromEntries(asked.searchParams)).toEqual({ kept: '1', service: 'the, "registry"', scope: 'repository:team/app:pull' })
    expect(world.tokens.requests[0].headers.authorization).toBeUndefined()

    await ask(client, world, 'team/other') // another repository needs a token of its own, but no second refusal
    expect(world.tokens.requests).toHaveLength(2)
    expect(world.registry.requests.filter(({ url }) => url.includes('team/other'))).toHaveLength(1)
  })

  test('that expired early or were revoked are renewed without the caller noticing', async () => {
    const world = await tokenWorld((_request, response, count) => {
      world.accepted.add(`t${count}`)
      response.end(JSON.stringify({ access_token: `t${count}`, expires_in: 300 }))
    })
    const client = world.client()
    await ask(client, world)
    world.accepted.clear()
    await ask(client, world)
    expect(world.tokens.requests).toHaveLength(2)
  })

  test('are asked for with the name and password, which go to the token server and not to the registry', async () => {
    const world = await tokenWorld((request, response) => {
      if (request.headers.authorization !== `Basic ${Buffer.from('ada:pä:ss').toString('base64')}`) return void response.writeHead(401).end()
      world.accepted.add('for-ada')
      response.end(JSON.stringify({ token: 'for-ada' }))
    })
    await ask(world.client(staticCredentials({ [`https://${world.registry.host}`]: { username: 'ada', password: 'pä:ss' } })), world)
    expect(new URL(world.tokens.requests[0].url, 'http://x').searchParams.get('account')).toBe('ada')
    expect(world.registry.requests.some(({ headers }) => headers.authorization?.startsWith('Basic'))).toBe(false)
  })

  test('are asked for with an identity token by POST', async () => {
    const world = await tokenWorld((_request, response) => {
      world.accepted.add('refreshed')
      response.end(JSON.stringify({ access_token: 'refreshed' }))
    })
    await ask(world.client(staticCredentials({ [world.registry.host]: { identityToken: 'long-lived' } })), world)
    const [request] = world.tokens.requests
    expect(request.method).toBe('POST')
    expect(Object.fromEntries(new URLSearchParams(request.body))).toMatchObject({ grant_type: 'refresh_token', refresh_token: 'long-lived', scope: 'repository:team/app:pull' })
  })

  test('given outright are sent as they are', async () => {
    const world = await tokenWorld((_request, response) => response.writeHead(500).end())
    world.accepted.add('mine')
    await ask(world.client(firstCredentials(staticCredentials({}), staticCredentials({ [world.registry.host]: { registryToken: 'mine' } }))), world)
    expect(world.tokens.requests).toHaveLength(0)
  })

  test('that the server refuses give an error that says what to do and holds no secret', async () => {
    const world = await tokenWorld((_request, response) => response.writeHead(401).end(JSON.stringify({ details: 'bad password hunter2 given' })))
    const error = (await ask(world.client(staticCredentials({ [world.registry.host]: { username: 'ada', password: 'hunter2' } })), world).catch((thrown: unknown) => thrown)) as Error
    expect(error).toMatchObject({ code: 'UNAUTHORIZED', message: expect.stringMatching(/team\/app.*bad password \[redacted\].*docker login/) })
    expect(JSON.stringify(error) + error.message).not.toContain('hunter2')
  })

  test('that are accepted nowhere do not make a loop', async () => {
    const world = await tokenWorld((_request, response, count) => response.end(JSON.stringify({ token: `useless-${count}` })))
    const error = (await ask(world.client(), world).catch((thrown: unknown) => thrown)) as Error
    expect(error).toMatchObject({ code: 'UNAUTHORIZED', message: expect.stringContaining('docker login') })
    expect(world.registry.requests.length).toBeLessThanOrEqual(3)
  })

  test('a token server that talks nonsense is refused', async () => {
    for (const answer of ['', '[]', '{}', '{"token": "with\\nnewline"}', '{"token": 7}', '{"token": "x", "expires_in": "soon"}']) {
      const world = await tokenWorld((_request, response) => response.end(answer))
      await expect(ask(world.client(), world)).rejects.toMatchObject({ code: 'INVALID_DATA' })
    }
  })
})

describe('the WWW-Authenticate header', () => {
  test('is read with several challenges, quotes, and commas inside them', () => {
    expect(parseChallenges('Bearer realm="https://a/token",service="s",scope="repository:x:pull,push repository:y:pull", Basic realm="b \\" c"')).toEqual([
      { scheme: 'bearer', parameters: { realm: 'https://a/token', service: 's', scope: 'repository:x:pull,push repository:y:pull' } },
      { scheme: 'basic', parameters: { realm: 'b " c' } },
    ])
    expect(parseChallenges(['Negotiate', 'BASIC realm=plain'])).toEqual([{ scheme: 'negotiate', parameters: {} }, { scheme: 'basic', parameters: { realm: 'plain' } }])
    expect(parseChallenges(undefined)).toEqual([])
  })

  test('of hostile length or shape ends in bounded time', () => {
    for (const text of [`Bearer realm="${'\\"'.repeat(100_000)}`, ','.repeat(1_000_000), 'a '.repeat(500_000), 'a='.repeat(500_000), '"'.repeat(100_000), 'x=1, Basic']) {
      expect(parseChallenges(text).length).toBeLessThan(20_000)
    }
  })
})
