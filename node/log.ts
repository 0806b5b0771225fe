// Logs: one JSON line an event on standard error; secrets are cut out whatever object they come in.
import { pino, type Logger } from 'pino'

const SECRETS = ['authorization', 'Authorization', 'password', 'secret', 'token', 'identityToken', 'registryToken', 'credentials', 'joinToken', 'cookie']

export function createLogger(level: string, name: string): Logger {
  return pino(
    { level, name, redact: { paths: SECRETS.flatMap((key) => [key, `*.${key}`, `*.*.${key}`]), censor: '[redacted]' } },
    pino.destination({ dest: 2, sync: true }),
  )
}
