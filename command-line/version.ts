// The version, from package.json: the one place that says it.
import { readFileSync, existsSync } from 'node:fs'

const file = [new URL('../package.json', import.meta.url), new URL('../../package.json', import.meta.url)].find((url) => existsSync(url))

export const VERSION: string = file === undefined ? 'unknown' : (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version
