// A supernode with files and nodes that download them: what the tests of downloads have in common.
import { expect } from '@jest/globals'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { fixedBlockTable } from '../../image/block-table.ts'
import type { Download } from '../../peer/download.ts'
import { Downloads } from '../../peer/downloads.ts'
import type { DownloadsOptions } from '../../peer/downloads.ts'
import type { DownloadRequest } from '../../peer/download-request.ts'
import type { PeerOptions } from '../../peer/peer.ts'
import { StreamFill } from '../../peer/stream-fill.ts'
import { FileSupernode, sha256 } from './file-supernode.ts'
import type { TestFile } from './file-supernode.ts'
import { Lab, until } from './lab.ts'
import type { Node, TestSupernode } from './lab.ts'

const logger = pino({ level: process.env.PEER_TEST_LOG ?? 'silent' })
const QUICK: DownloadsOptions = { lingerMs: 50, reconnectMs: 1_500, stalledMs: 700, demandAfterMs: 300 }

export interface DownloadNode extends Node { downloads: Downloads }
export interface NodePlan { options?: DownloadsOptions; at?: { directory?: string; capBytes?: number }; alone?: boolean; peer?: Partial<PeerOptions> }

export class DownloadLab {
  readonly lab: Lab
  readonly supernode: TestSupernode
  readonly files: FileSupernode

  /** `supernode`: bytes that it uploads in a second. */
  static async start(limits: { supernode?: number } = {}): Promise<DownloadLab> {
    const lab = new Lab()
    return new DownloadLab(lab, await lab.supernode({ exchange: limits.supernode === undefined ? {} : { uploadBytesPerSecond: limits.supernode } }))
  }

  private constructor(lab: Lab, supernode: TestSupernode) {
    this.lab = lab
    this.supernode = supernode
    this.files = new FileSupernode(supernode)
    lab.onStop(async () => this.files.stop())
  }

  async node(name: string, { options, at, alone = false, peer }: NodePlan = {}): Promise<DownloadNode> {
    const { lab, supernode } = this
    const made = await lab.node(name, { supernodes: alone ? [] : [supernode.address], fetch: { demandTimeout: 3_000, backgroundTimeout: 3_000, stallTimeout: 1_000 }, ...peer }, at)
    if (!alone) await until(`${name} is greeted`, () => supernode.admitted.has(made.peer.id) && made.peer.supernodes.inOrder('').length === 1)
    const downloads = new Downloads({ peer: made.peer, logger, metrics: new Registry() }, { ...QUICK, ...options })
    lab.onStop(() => downloads.stop())
    return Object.assign(made, { downloads })
  }

  stop(): Promise<void> {
    return this.lab.stop()
  }
}

/** What asks the supernode for this file. */
export function ask(file: TestFile, more: Partial<DownloadRequest> = {}): DownloadRequest {
  if (file.blob) return { key: file.id(0), ask: { operation: 'blob.open', request: { reference: 'registry/name', digest: file.id(0).slice(5) } }, digest: file.id(0).slice(5), ...more }
  return { ask: { operation: 'file.open', request: { url: file.url } }, ...more, key: `${file.url} ${more.key ?? ''}` }
}

export async function readAll(download: Download, range?: { from?: number; to?: number }): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of download.read(range)) chunks.push(chunk)
  return Buffer.concat(chunks)
}

export function expectFile(got: Buffer, file: TestFile): void {
  expect([got.length, sha256(got)]).toEqual([file.bytes.length, sha256(file.bytes)])
}

/** The node comes to have all of the file by another way, and says so. */
export async function hold({ node, file, bytes = file.bytes, supernode }: { node: DownloadNode; file: TestFile; bytes?: Buffer; supernode: TestSupernode }): Promise<void> {
  const fill = new StreamFill(await node.store.add(file.id(0), fixedBlockTable(file.bytes.length, file.blockBytes), { open: true }))
  await fill.write(bytes)
  await fill.finish()
  await until(`${node.name} is announced`, () => supernode.holders.get(file.id(0))?.get(node.peer.id)?.whole === true)
}
