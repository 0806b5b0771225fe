// Image references: `[registry/]repository[:tag][@digest]` by the grammar of the distribution project, with Docker's defaults.
import { isDigest } from './digest.ts'
import { SkimmerError } from './errors.ts'

export const DEFAULT_REGISTRY = 'docker.io'
const LEGACY_DEFAULT_REGISTRY = 'index.docker.io'
const OFFICIAL_NAMESPACE = 'library/'
const DEFAULT_TAG = 'latest'
const MAX_NAME_LENGTH = 255
/** 255 of name, 128 of tag, 135 of a sha512 digest, and two separators. */
const MAX_REFERENCE_LENGTH = 520

/**
 * Always canonical: `registry` is never empty, `repository` has its `library/` where Docker means it, and at least one
 * of tag and digest is set. With both, the digest decides and the tag is a note for people.
 */
export interface Reference {
  /** Host with optional port, as people write it: `docker.io`, `registry.example:5000`, `[::1]:5000`. */
  readonly registry: string
  readonly repository: string
  readonly tag?: string
  readonly digest?: string
}

// Every expression is unambiguous (no nested optional repeats), so that matching hostile text takes linear time.
const DOMAIN = /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(?::([0-9]{1,5}))?$/
const REPOSITORY_COMPONENT = /^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*$/
const TAG = /^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}$/
const IMAGE_ID = /^[a-f0-9]{64}$/

export const isTag = (text: string): boolean => TAG.test(text)

export function isRepository(text: string): boolean {
  return text.length > 0 && text.length <= MAX_NAME_LENGTH && text.split('/').every((part) => REPOSITORY_COMPONENT.test(part))
}

export function isRegistry(text: string): boolean {
  if (text.length > MAX_NAME_LENGTH) return false
  const match = DOMAIN.exec(text)
  return match !== null && (match[1] === undefined || (Number(match[1]) > 0 && Number(match[1]) < 65536))
}

function refuse(text: string, why: string): never {
  const shown = text.length > 200 ? `${text.slice(0, 200)}…` : text
  throw new SkimmerError('INVALID_ARGUMENT', `"${shown}" is not an image reference: ${why}; write it like registry.example:5000/team/app:1.2 or debian:12`, {
    details: { reference: shown },
  })
}

/**
 * Parses what people and Kubernetes write. `debian` is `docker.io/library/debian:latest`; the first component is a
 * registry when it has a dot, a colon or an upper-case letter, or is `localhost`. Throws INVALID_ARGUMENT.
 */
export function parseReference(text: string): Reference {
  if (text === '') refuse(text, 'it is empty')
  if (text.length > MAX_REFERENCE_LENGTH) refuse(text, `it is longer than ${MAX_REFERENCE_LENGTH} characters`)
  if (IMAGE_ID.test(text)) refuse(text, '64 hex digits are an image id, not a name')

  let rest = text
  let digest: string | undefined
  const at = rest.indexOf('@')
  if (at !== -1) {
    digest = rest.slice(at + 1)
    if (!isDigest(digest)) refuse(text, `"${digest.slice(0, 140)}" is not a sha256 or sha512 digest`)
    rest = rest.slice(0, at)
  }

  let registry = DEFAULT_REGISTRY
  const slash = rest.indexOf('/')
  const first = slash === -1 ? '' : rest.slice(0, slash)
  if (first !== '' && (/[.:A-Z]/.test(first) || first === 'localhost')) {
    if (!isRegistry(first)) refuse(text, `"${first}" is not a host name with an optional port`)
    registry = first === LEGACY_DEFAULT_REGISTRY ? DEFAULT_REGISTRY : first
    rest = rest.slice(slash + 1)
  }

  let tag: string | undefined
  const colon = rest.lastIndexOf(':')
  if (colon !== -1) {
    tag = rest.slice(colon + 1)
    if (!isTag(tag)) refuse(text, `"${tag}" is not a tag (letters, digits, "_", "." and "-", at most 128)`)
    rest = rest.slice(0, colon)
  }
  if (rest === '') refuse(text, 'the repository is missing')
  if (/[A-Z]/.test(rest)) refuse(text, `the repository "${rest}" must be in lower case`)
  const repository = registry === DEFAULT_REGISTRY && !rest.includes('/') ? OFFICIAL_NAMESPACE + rest : rest
  if (registry.length + 1 + repository.length > MAX_NAME_LENGTH) refuse(text, `its name is longer than ${MAX_NAME_LENGTH} characters`)
  if (!isRepository(repository)) refuse(text, `"${rest}" is not a repository name`)

  if (tag === undefined && digest === undefined) tag = DEFAULT_TAG
  // Absent rather than undefined: references are compared, and kept as JSON.
  return { registry, repository, ...(tag !== undefined && { tag }), ...(digest !== undefined && { digest }) }
}

const suffix = (reference: Reference): string =>
  (reference.tag === undefined ? '' : `:${reference.tag}`) + (reference.digest === undefined ? '' : `@${reference.digest}`)

/** The canonical name, as containerd stores it: `docker.io/library/debian:12`. */
export function formatReference(reference: Reference): string {
  return `${reference.registry}/${reference.repository}${suffix(reference)}`
}

/** The name as `docker images` shows it: `debian:12`. Parses back to the same reference. */
export function familiarReference(reference: Reference): string {
  if (reference.registry !== DEFAULT_REGISTRY) return formatReference(reference)
  const bare = reference.repository.startsWith(OFFICIAL_NAMESPACE) ? reference.repository.slice(OFFICIAL_NAMESPACE.length) : reference.repository
  // `library/a/b` must keep its namespace, and so must a name whose first part would read as a registry.
  const short = bare.includes('/') ? reference.repository : bare
  return /^(?:localhost|[^/]*\.[^/]*)\//.test(short) ? formatReference(reference) : `${short}${suffix(reference)}`
}

/** The same repository, at exactly this manifest. */
export function atDigest(reference: Reference, digest: string): Reference {
  return { registry: reference.registry, repository: reference.repository, digest }
}
