// `skimmer supernode`: the datacenter's cache, indexer and scheduler.
import type { Command } from 'commander'
import { Registry } from 'prom-client'
import { addSettings, loadSettings } from '../config/settings.ts'
import { SUPERNODE_SETTINGS, supernodeConfig } from '../config/supernode-settings.ts'
import { interruptible } from '../interrupt.ts'
import { createLogger } from '../log.ts'

export function addSupernode(program: Command): void {
  const command = program
    .command('supernode')
    .summary("run a datacenter's supernode")
    .description(`Runs a supernode: it downloads each layer once from its registry, indexes it while it streams in, keeps it, and tells nodes which peers
to ask. One per datacenter is enough; nodes keep running without it. Its console is at the HTTP address.`)
  addSettings(command, SUPERNODE_SETTINGS).action(async (flags: Record<string, unknown>) => {
    const config = loadSettings(SUPERNODE_SETTINGS, flags)
    const { Supernode } = await import('../../supernode/supernode.ts')
    const logger = createLogger(config['log.level'], 'supernode')
    await interruptible(async (signal) => {
      const supernode = await Supernode.start(supernodeConfig(config), { logger, metrics: new Registry() })
      await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
      logger.info('stopping')
      await supernode.stop()
    })
  })
}
