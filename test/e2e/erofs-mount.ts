// Mounts an EROFS image whose layers are regular files: mount(2) itself, because util-linux would put a loop device in between.
import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { composeImage } from '../../image/composer.ts'
import { writeErofs } from '../../image/erofs-writer.ts'
import { indexTar } from '../image/tar-builder.ts'

const run = promisify(execFile)
const MOUNT = 'my ($s, $t, $o) = @ARGV; my $f = "erofs"; syscall(165, $s, $t, $f, 1, $o) == 0 or die "mount: $!\\n"'

/** Why EROFS cannot be mounted here; '' when it can. */
export const whyNoErofs = [
  process.getuid?.() === 0 ? '' : 'needs root',
  process.arch === 'x64' ? '' : 'knows the number of mount(2) on x64 only',
  existsSync('/proc/filesystems') && readFileSync('/proc/filesystems', 'latin1').includes('erofs') ? '' : 'needs EROFS in the kernel',
]
  .filter((reason) => reason !== '')
  .join(', ')

export class ErofsMounts {
  readonly directory = mkdtempSync(join(tmpdir(), 'skimmer-erofs-'))
  #mounts: string[] = []
  #count = 0

  /** Composes uncompressed layers (lowest first), writes the image and mounts it over them. */
  async mountLayers(layers: readonly Buffer[]): Promise<string> {
    const base = join(this.directory, String(this.#count++))
    writeErofs(composeImage(layers.map(indexTar)), { path: `${base}.erofs` })
    const devices = layers.map((bytes, index) => {
      writeFileSync(`${base}.${index}.tar`, bytes)
      return `${base}.${index}.tar`
    })
    return this.mount(`${base}.erofs`, devices)
  }

  async mount(image: string, devices: readonly string[]): Promise<string> {
    const target = join(this.directory, `${this.#count++}.mounted`)
    mkdirSync(target)
    await run('perl', ['-e', MOUNT, image, target, devices.map((device) => `device=${device}`).join(',')])
    this.#mounts.push(target)
    return target
  }

  async close(): Promise<void> {
    for (const mount of this.#mounts.toReversed()) await run('umount', [mount]).catch(() => run('umount', ['-l', mount]))
    this.#mounts = []
    rmSync(this.directory, { recursive: true, force: true })
  }
}
