// Platforms: how hosts and indexes name them, and which manifest of an index a host should run.
import { arch } from 'node:process'
import { z } from 'zod'
import { SkimmerError } from './errors.ts'

export const platformSchema = z.object({
  os: z.string().max(64),
  architecture: z.string().max(64),
  variant: z.string().max(64).optional(),
  'os.version': z.string().max(128).optional(),
  'os.features': z.array(z.string().max(128)).max(64).nullish().transform((features) => features ?? undefined).optional(),
})
export type Platform = z.infer<typeof platformSchema>

const ARCHITECTURES: Readonly<Record<string, string>> = {
  x86_64: 'amd64', 'x86-64': 'amd64', x64: 'amd64', aarch64: 'arm64', armhf: 'arm', armel: 'arm', i386: '386', i686: '386', ia32: '386',
  ppc64el: 'ppc64le', loong64: 'loong64', mipsel: 'mipsle',
}

/** One spelling for each platform: `x86_64` is `amd64`; `arm64` means v8, `arm` means v7, `amd64` means v1. */
export function normalizePlatform(platform: Platform): Platform {
  const written = platform.architecture.toLowerCase()
  const architecture = ARCHITECTURES[written] ?? written
  let variant = platform.variant?.toLowerCase() ?? ''
  if (/^[0-9]$/.test(variant)) variant = `v${variant}`
  if (variant === '' && architecture === 'arm') variant = written === 'armel' ? 'v6' : 'v7'
  if ((architecture === 'arm64' && variant === 'v8') || (architecture === 'amd64' && variant === 'v1')) variant = ''
  return { os: platform.os.toLowerCase() || 'linux', architecture, ...(variant === '' ? {} : { variant }) }
}

/** `linux/arm64/v8`, `linux/amd64`, or an architecture alone. Throws INVALID_ARGUMENT. */
export function parsePlatform(text: string): Platform {
  const parts = text.split('/')
  if (text.length > 128 || parts.length > 3 || !parts.every((part) => /^[A-Za-z0-9_.-]+$/.test(part))) {
    throw new SkimmerError('INVALID_ARGUMENT', `"${text.slice(0, 128)}" is not a platform: write os/architecture or os/architecture/variant, like linux/arm64/v8`)
  }
  if (parts.length === 1) return normalizePlatform({ os: 'linux', architecture: parts[0] })
  const [os, architecture, variant] = parts
  return normalizePlatform({ os, architecture, variant })
}

export function formatPlatform(platform: Platform): string {
  return `${platform.os}/${platform.architecture}${platform.variant === undefined ? '' : `/${platform.variant}`}`
}

/** The platform containers of this host run on. Containers are Linux wherever Skimmer runs. */
export function hostPlatform(): Platform {
  return normalizePlatform({ os: 'linux', architecture: arch })
}

/** Variants that also run on `variant`, best first: a newer CPU runs what was built for older ones of its family. */
function runnableVariants(architecture: string, variant: string | undefined): (string | undefined)[] {
  const oldest = { arm: 5, arm64: 8, amd64: 1 }[architecture]
  if (oldest === undefined) return [variant]
  const level = Number(/^v([0-9]{1,2})$/.exec(variant ?? `v${oldest}`)?.[1] ?? Number.NaN)
  if (Number.isNaN(level)) return [variant, undefined]
  const variants: (string | undefined)[] = []
  for (let version = level; version >= oldest; version--) {
    variants.push(version === oldest && architecture !== 'arm' ? undefined : `v${version}`)
  }
  return variants
}

/**
 * The entry of an index to use on `platform`: the best variant that runs there, the first of equals. An entry that names
 * no platform is taken only if it is the index's only one. undefined when nothing fits.
 */
export function choosePlatform<Entry extends { platform?: Platform }>(entries: readonly Entry[], platform: Platform): Entry | undefined {
  const wanted = normalizePlatform(platform)
  const fitting = entries
    .filter((entry) => entry.platform !== undefined)
    .map((entry) => ({ entry, platform: normalizePlatform(entry.platform!) }))
    .filter(({ platform: offered }) => offered.os === wanted.os && offered.architecture === wanted.architecture)
  for (const variant of runnableVariants(wanted.architecture, wanted.variant)) {
    const match = fitting.find(({ platform: offered }) => offered.variant === variant)
    if (match !== undefined) return match.entry
  }
  return entries.length === 1 && entries[0].platform === undefined ? entries[0] : undefined
}
