// `skimmer setup CLIENT`: writes the client's mirror configuration, and takes it back.
import { createInterface } from 'node:readline/promises'
import { Argument, type Command } from 'commander'
import { SkimmerError } from '../../oci/errors.ts'
import { EXIT_CODES } from '../../command-line/exit-codes.ts'
import { interruptible } from '../../command-line/interrupt.ts'

const CLIENTS = ['containerd', 'docker', 'podman', 'crio'] as const
const PROXY = 'http://127.0.0.1:4001'
const REGISTRY = /^(?=.{1,255}$)(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?$/

interface Flags {
  registry: string[]
  proxy: string
  root: string
  config?: string
  certsDir?: string
  yes?: boolean
  dryRun?: boolean
  undo?: boolean
  uninstall?: boolean
  check?: boolean
}

const say = (text: string): void => void process.stdout.write(`${text}\n`)

export function addSetup(program: Command): void {
  program
    .command('setup')
    .summary('have containerd, Docker, podman or CRI-O ask the registry proxy first')
    .description(
      "Writes a client's mirror configuration for the registry proxy. Shows what would change, asks, keeps a copy of every file it changes beside it, and --undo gives every file back as it was. " +
      'Entries of others are never touched. When the proxy is away the clients go to the registries themselves.',
    )
    .addArgument(new Argument('<CLIENT>', 'whose configuration').choices(CLIENTS))
    .option('-r, --registry <NAME...>', 'only for these registries (HOST or HOST:PORT); default: all for containerd, the usual ones for podman and CRI-O, docker.io for Docker', [])
    .option('--proxy <URL>', 'where the registry proxy is', PROXY)
    .option('-y, --yes', 'do it without asking')
    .option('--dry-run', 'only show what would change')
    .option('--undo', 'take it back')
    .option('--uninstall', 'the same as --undo')
    .option('--check', 'only ask whether the configuration is in place and the proxy answers')
    .option('--root <DIR>', 'edit files below this directory, for instance of an image that is being made', '/')
    .option('--config <FILE>', "the client's configuration file, when it is not at its usual place (containerd, docker)")
    .option('--certs-dir <DIR>', 'the directory for hosts.toml files; default: what config_path in containerd\'s configuration says, else /etc/containerd/certs.d')
    .addHelpText('after', `
Without a terminal nothing is changed unless --yes is said: then it shows the changes and ends with exit code 2, or with 0 when there are none.
--check ends with 1 when the configuration is not in place, with 5 when the proxy does not answer. Saying no ends with 1.`)
    .action(async (name: (typeof CLIENTS)[number], flags: Flags) => {
      const [{ planSetup, planUndo }, { ClientFiles }, { unifiedDiff }, client] = await Promise.all([import('../setup/setup.ts'), import('../setup/client-files.ts'), import('../setup/file-change.ts'), clientOf(name)])
      const undo = flags.undo === true || flags.uninstall === true
      if (undo && flags.check) throw new SkimmerError('INVALID_ARGUMENT', '--check and --undo do not go together')
      if (name !== 'containerd' && flags.certsDir !== undefined) throw new SkimmerError('INVALID_ARGUMENT', '--certs-dir is for containerd alone')
      if (flags.config !== undefined && (name === 'podman' || name === 'crio')) throw new SkimmerError('INVALID_ARGUMENT', `--config: ${name} reads /etc/containers/registries.conf.d; use --root`)
      const request = { proxy: proxyUrl(flags.proxy), registries: flags.registry.map(registryName), configFile: flags.config, certsDirectory: flags.certsDir?.replace(/(?<=.)\/+$/, '') }
      const files = new ClientFiles(flags.root)
      const plan = (undo ? planUndo : planSetup)(client, request, files)
      for (const note of plan.notes) say(`note: ${note}`)
      if (flags.check) {
        for (const { path } of plan.changes) say(`missing  ${path} does not ask ${request.proxy} yet`)
        if (plan.changes.length === 0) say(`ok       ${name} is told to ask ${request.proxy} first`)
        const { checkProxy } = await import('../setup/proxy-check.ts')
        await interruptible((signal) => checkProxy(request.proxy, signal))
        say(`ok       the registry proxy at ${request.proxy} answers`)
        if (plan.changes.length > 0) process.exitCode = EXIT_CODES.failed
        return
      }
      if (plan.changes.length === 0 && !undo) return say('nothing to change: it is set up already')
      for (const change of plan.changes) say(unifiedDiff(change).trimEnd())
      if (flags.dryRun) return say(plan.changes.length === 0 ? 'nothing to change' : 'nothing was changed (--dry-run)')
      if (plan.changes.length > 0 && flags.yes !== true && !(await agreed())) return
      const backups = plan.perform()
      if (plan.changes.length === 0) return say('nothing to undo')
      for (const backup of backups) say(`kept ${backup}`)
      say(undo ? 'undone' : 'done')
      for (const line of client.reload(plan.changes.map(({ path }) => path), undo)) say(`  ${line}`)
      if (!undo) say(`  skimmer setup ${name} --check    asks the proxy;  --undo takes all this back`)
    })
}

async function clientOf(name: (typeof CLIENTS)[number]): Promise<import('../setup/setup-client.ts').SetupClient> {
  if (name === 'containerd') return (await import('../setup/containerd.ts')).containerd
  if (name === 'docker') return (await import('../setup/docker.ts')).docker
  return (await import('../setup/registries-conf.ts'))[name]
}

/** Asks on the terminal. Without one, or with a no, the exit code says that nothing was done. */
async function agreed(): Promise<boolean> {
  if (!process.stdin.isTTY || !process.stdout.isTTY) {
    process.stderr.write('skimmer: nothing was changed: there is no terminal to ask on; say --yes, or --dry-run to only look\n')
    process.exitCode = EXIT_CODES.usage
    return false
  }
  const answer = await interruptible(async (signal) => {
    const terminal = createInterface({ input: process.stdin, output: process.stdout })
    try {
      return await terminal.question('Change these files? [y/N] ', { signal })
    } finally {
      terminal.close()
    }
  })
  if (/^\s*(?:y|yes)\s*$/i.test(answer)) return true
  say('nothing was changed')
  process.exitCode = EXIT_CODES.failed
  return false
}

function proxyUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url === undefined || !/^https?:$/.test(url.protocol) || url.username !== '' || url.password !== '' || url.search !== '' || url.hash !== '') {
    throw new SkimmerError('INVALID_ARGUMENT', `--proxy: ${JSON.stringify(text)} is not an http or https URL without user, query or fragment, for instance ${PROXY}`)
  }
  return `${url.protocol}//${url.host}${url.pathname.replace(/\/+$/, '')}`
}

function registryName(text: string): string {
  const name = text.toLowerCase()
  if (!REGISTRY.test(name) || name.includes('..')) throw new SkimmerError('INVALID_ARGUMENT', `--registry: ${JSON.stringify(text)} is not HOST or HOST:PORT, for instance quay.io or registry.example:5000`)
  return ['index.docker.io', 'registry-1.docker.io'].includes(name) ? 'docker.io' : name
}
