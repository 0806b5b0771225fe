// Logs: one JSON line an event on standard error; secrets are cut out whatever object they come in.
import { pino, type Logger } from 'pino'

const SECRETS = ['authorization', 'Authorization', 'password', 'secret', 'token', 'identityToken', 'registryToken', 'credentials', 'joinToken', 'cookie']

/** Errors carry requests, requests headers: this deep a secret is still found. */
const DEPTH = 5
const EVERYWHERE = Array.from({ length: DEPTH }, (_, depth) => '*.'.repeat(depth)).flatMap((prefix) => SECRETS.map((key) => prefix + key))

export function createLogger(level: string, name: string): Logger {
  return pino(
    { level, name, redact: { paths: EVERYWHERE, censor: '[redacted]' } },
    pino.destination({ dest: 2, sync: true }),
  )
}
