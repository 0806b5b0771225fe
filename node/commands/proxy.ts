// `skimmer proxy`: the registry proxy alone, for machines without the node daemon.
import type { Command } from 'commander'
import { addSettings, loadSettings, SETTINGS_HELP } from '../../command-line/settings.ts'
import { interruptible } from '../../command-line/interrupt.ts'
import { LONE_PROXY_SETTINGS } from '../config/lone-proxy-settings.ts'

export function addProxy(program: Command): void {
  const command = program
    .command('proxy')
    .summary('run a registry mirror that shares what it pulls')
    .description(
      'Runs the registry proxy alone: a pull-through mirror in front of any number of registries, whose blobs come from peers and the supernode where they can. ' +
      'It needs no root, no FUSE, and no supernode. The node daemon has the same proxy inside (proxy.listen). `skimmer setup` configures clients for it.',
    )
    .addHelpText('after', `
${SETTINGS_HELP}

Who may read what: what the registry lets a client read with the client's own credentials. See docs/registry-proxy.md.
SIGTERM stops it; what it holds is there again at the next start.`)
  addSettings(command, LONE_PROXY_SETTINGS).action(async (flags: Record<string, unknown>) => {
    const config = loadSettings(LONE_PROXY_SETTINGS, flags)
    const [{ LoneProxy }, { createLogger }] = await Promise.all([import('../lone-proxy.ts'), import('../../command-line/log.ts')])
    const logger = createLogger(config['log.level'], 'proxy')
    await interruptible(async (signal) => {
      const running = await LoneProxy.start(config, { logger })
      if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
      logger.info('stopping')
      await running.stop()
    })
  })
}
