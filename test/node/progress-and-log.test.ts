// What is printed while work goes on, and what must never be printed.
import { describe, expect, test } from '@jest/globals'
import { spawnSync } from 'node:child_process'
import { Writable } from 'node:stream'
import { Progress } from '../../command-line/progress.ts'
import { ROOT } from './run-cli.ts'

function pipe(): { out: NodeJS.WriteStream; text: () => string } {
  let text = ''
  const out = new Writable({ write: (chunk, _, done) => { text += String(chunk); done() } }) as unknown as NodeJS.WriteStream
  return { out, text: () => text }
}

/** What a process of its own writes to standard error. */
function logged(statements: string): string {
  const script = `import { createLogger } from ${JSON.stringify(`${ROOT}command-line/log.ts`)}\nconst logger = createLogger('info', 'test')\n${statements}`
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' })
  expect([status, stdout]).toEqual([0, ''])
  return stderr
}

describe('progress', () => {
  test('on a pipe: plain lines, the first and the last of each item, and none twice', () => {
    const { out, text } = pipe()
    const progress = new Progress(out)
    for (let done = 0; done <= 100; done++) progress.update([{ name: 'layer 1', done: done * 2 ** 20, total: 100 * 2 ** 20, note: done < 100 ? 'running' : 'success' }])
    progress.update([{ name: 'layer 1', done: 100 * 2 ** 20, total: 100 * 2 ** 20, note: 'success' }])
    progress.say('all is there')
    progress.stop()
    const lines = text().trimEnd().split('\n')
    expect(lines[0]).toBe('layer 1: 0 B of 100 MiB, running')
    expect(lines.slice(-2)).toEqual(['layer 1: 100 MiB of 100 MiB, success', 'all is there'])
    expect(lines.length).toBeLessThan(100)
    // No cursor movements, no colours: it may go to a file.
    for (const control of ['\u001b', '\r']) expect(text()).not.toContain(control)
  })
})

describe('the log', () => {
  test('one JSON line an event on standard error; nothing below its level', () => {
    const lines = logged(`logger.debug('too small'); logger.info({ reference: 'debian:12' }, 'pulled'); logger.error('broken')`).trimEnd().split('\n')
    expect(lines.map((line) => JSON.parse(line) as object)).toMatchObject([{ level: 30, name: 'test', reference: 'debian:12', msg: 'pulled' }, { level: 50, msg: 'broken' }])
  })

  test('no secret, in whatever object it comes', () => {
    const text = logged(`
      const secret = 'hunter2-hunter2'
      logger.info({ password: secret, token: secret, joinToken: secret }, 'flat')
      logger.info({ request: { headers: { authorization: secret, Authorization: secret } } }, 'headers')
      logger.info({ auth: { identityToken: secret, registryToken: secret, credentials: { username: 'u', secret } } }, 'credentials')
      const error = new Error('refused')
      error.details = { request: { headers: { authorization: secret, cookie: secret } } }
      logger.warn({ err: error }, 'an error with a request in it')
      logger.child({ password: secret }).info('of a child')
    `)
    expect(text).not.toContain('hunter2')
    expect(text.match(/\[redacted\]/g)?.length).toBeGreaterThanOrEqual(9)
  })
})
