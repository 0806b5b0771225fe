// The forward proxy's configuration: rules, interception, who may use it; dfdaemon's `proxies` and `hijack_https` are understood too.
import { BlockList, isIP } from 'node:net'
import { RE2JS } from 're2js'
import { z } from 'zod'
import { SkimmerError } from '../../oci/errors.ts'

const MAX_PATTERN = 4096

/** RE2 syntax (Go's, as dfdaemon has it). It is matched in time linear in the URL's length, whatever the expression: URLs come from outside. */
const pattern = z.string().min(1).max(MAX_PATTERN).transform((text, context) => {
  try {
    return RE2JS.compile(text)
  } catch (error) {
    context.addIssue({ code: 'custom', message: `${JSON.stringify(text)} is not a regular expression (RE2 syntax): ${(error as Error).message}` })
    return z.NEVER
  }
})
const authority = z.string().regex(/^(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?$/, 'must be HOST or HOST:PORT')
const network = z.string().refine((text) => addNetwork(new BlockList(), text), 'must be an address or a network such as 10.0.0.0/8')

const ruleSchema = z.strictObject({
  /** Looked for anywhere in the URL, `https://registry.example/v2/app/blobs/sha256:…`; a port that is the scheme's own is not written. */
  match: pattern,
  through: z.enum(['swarm', 'direct', 'refuse']).default('swarm'),
  /** Ask this host instead. */
  redirect: authority.optional(),
  /** Speak TLS to the host although the client spoke plain HTTP. */
  'use-https': z.boolean().default(false),
})

const interceptHostSchema = z.strictObject({
  /** Looked for anywhere in the host's name (no port). */
  match: pattern,
  /** PEM text or file: trusted for this host in addition to the system's authorities. */
  ca: z.string().optional(),
  insecure: z.boolean().default(false),
})

const schema = z.strictObject({
  rules: z.array(ruleSchema).max(1000).default([]),
  /** For what no rule matches. */
  otherwise: z.enum(['swarm', 'direct', 'refuse']).default('direct'),
  intercept: z.strictObject({ cert: z.string(), key: z.string(), hosts: z.array(interceptHostSchema).min(1).max(1000) }).optional(),
  /** Ports that CONNECT may reach. */
  'connect-ports': z.union([z.literal('any'), z.array(z.int().min(1).max(65_535)).max(1000)]).default([80, 443, 5000]),
  /** Who may use it; default: this machine, or everybody who knows a user's password where there are users. */
  'allow-clients': z.array(network).max(1000).optional(),
})

/** dfdaemon's own words for the same things. */
const dfdaemonSchema = z.looseObject({
  proxies: z.array(z.strictObject({ regx: z.string(), use_https: z.boolean().optional(), direct: z.boolean().optional(), redirect: z.string().optional() })).optional(),
  hijack_https: z.strictObject({ cert: z.string(), key: z.string(), hosts: z.array(z.strictObject({ regx: z.string(), insecure: z.boolean().optional(), certs: z.array(z.string()).max(1).optional() })) }).optional(),
})

export type ForwardConfigInput = z.input<typeof schema>
export type ForwardConfig = z.output<typeof schema>
export type ForwardRule = ForwardConfig['rules'][number]
export type Through = ForwardRule['through']
export type InterceptHost = NonNullable<ForwardConfig['intercept']>['hosts'][number]

/** INVALID_ARGUMENT that names the key. */
export function forwardConfig(value: unknown): ForwardConfig {
  const parsed = schema.safeParse(translated(value ?? {}))
  if (!parsed.success) {
    const [issue] = parsed.error.issues
    throw new SkimmerError('INVALID_ARGUMENT', `the forward proxy's configuration is wrong${issue.path.length === 0 ? '' : ` at ${issue.path.map(String).join('.')}`}: ${issue.message}`)
  }
  return parsed.data
}

function translated(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || !('proxies' in value || 'hijack_https' in value)) return value
  const parsed = dfdaemonSchema.safeParse(value)
  if (!parsed.success) {
    const [issue] = parsed.error.issues
    throw new SkimmerError('INVALID_ARGUMENT', `the forward proxy's configuration is wrong at ${issue.path.map(String).join('.')}: ${issue.message}`)
  }
  const { proxies, hijack_https: hijack, ...rest } = parsed.data
  if ((proxies !== undefined && 'rules' in rest) || (hijack !== undefined && 'intercept' in rest)) {
    throw new SkimmerError('INVALID_ARGUMENT', "the forward proxy's configuration says the same twice: proxies is dfdaemon's word for rules, hijack_https for intercept")
  }
  return {
    ...rest,
    ...(proxies !== undefined && { rules: proxies.map(({ regx, use_https: https, direct, redirect }) => ({ match: regx, through: direct === true ? 'direct' : 'swarm', ...(https !== undefined && { 'use-https': https }), ...(redirect !== undefined && redirect !== '' && { redirect }) })) }),
    ...(hijack !== undefined && { intercept: { ...hijack, hosts: hijack.hosts.map(({ regx, insecure, certs }) => ({ match: regx, ...(insecure !== undefined && { insecure }), ...(certs?.[0] !== undefined && { ca: certs[0] }) })) } }),
  }
}

/** `10.0.0.0/8`, `10.1.2.3`, `fd00::/8`; false: none of these. */
export function addNetwork(list: BlockList, text: string): boolean {
  const [address, prefix, ...more] = text.split('/')
  const family = isIP(address)
  if (family === 0 || more.length > 0 || (prefix !== undefined && !/^\d{1,3}$/.test(prefix))) return false
  const bits = prefix === undefined ? (family === 4 ? 32 : 128) : Number(prefix)
  if (bits > (family === 4 ? 32 : 128)) return false
  list.addSubnet(address, bits, family === 4 ? 'ipv4' : 'ipv6')
  return true
}
