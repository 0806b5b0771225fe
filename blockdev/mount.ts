// Mounting and unmounting by the kernel's own calls, in children: whatever touches our FUSE mount must never run in the daemon itself.
import { execFile } from 'node:child_process'
import { SkimmerError } from '../oci/errors.ts'

/**
 * util-linux's mount(8) turns a file into a loop device by itself and mount(2) takes 4,096 bytes of options, too few for 127
 * `device=` paths; fsopen(2) and its family (Linux 5.2, one number on every architecture since 5.0) do neither. perl-base is on every Debian.
 */
const MOUNT_SCRIPT = `
my ($type, $target, @pairs) = @ARGV;
sub give_up { my $why = "$!"; my $log = ''; while (sysread($_[1], my $line, 4096)) { $log .= $line } print STDERR join(': ', $_[0], $why, $log || ()); exit 1 }
my $fs = syscall(430, $type, 1);
if ($fs < 0) { print STDERR "fsopen: $!"; exit 1 }
open(my $log, '<&=', $fs);
while (@pairs) {
  my ($key, $value) = splice @pairs, 0, 2;
  (defined $value && $value ne '' ? syscall(431, $fs, 1, $key, $value, 0) : syscall(431, $fs, 0, $key, 0, 0)) < 0 && give_up("$key $value", $log);
}
syscall(431, $fs, 6, 0, 0, 0) < 0 && give_up('mount', $log);
my $mount = syscall(432, $fs, 1, 1);
$mount < 0 && give_up('fsmount', $log);
my $here = '';
syscall(429, $mount, $here, -100, $target, 4) < 0 && give_up('move_mount', $log);
`

/** umount2(2): unlike umount(8) it never looks into the mounted file system, which might not answer. */
const UMOUNT_NUMBER: Partial<Record<NodeJS.Architecture, number>> = { x64: 166, arm64: 39, riscv64: 39, loong64: 39, s390x: 52, ppc64: 52 }
const MNT_DETACH = 2
const UMOUNT_NOFOLLOW = 8

export interface ChildAnswer { readonly status: number | 'timeout'; readonly stdout: string; readonly stderr: string }

/** Runs a child, bounded. A child that hangs in the kernel is left behind: nothing can end it before what it waits for. */
export function runChild(command: string, words: readonly string[], timeoutMs: number): Promise<ChildAnswer> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      child.kill('SIGKILL')
      child.unref()
      child.stdout?.destroy()
      child.stderr?.destroy()
      resolve({ status: 'timeout', stdout: '', stderr: `no answer within ${timeoutMs} ms` })
    }, timeoutMs)
    const child = execFile(command, words, { encoding: 'utf8' }, (error, stdout, stderr) => {
      clearTimeout(timer)
      const status = error === null ? 0 : typeof error.code === 'number' ? error.code : -1
      resolve({ status, stdout, stderr: stderr.trim() || (error?.message ?? '') })
    })
  })
}

/**
 * Mount a read-only file system. `options` are key and value in order, '' for a flag. Throws UNSUPPORTED with the kernel's words, or TIMEOUT.
 */
export async function mountReadOnly(type: string, source: string, target: string, options: readonly (readonly [key: string, value: string])[], timeoutMs: number): Promise<void> {
  const words = [['source', source], ...options, ['ro', '']].flat()
  const { status, stderr } = await runChild('perl', ['-e', MOUNT_SCRIPT, type, target, ...words], timeoutMs)
  if (status === 0) return
  throw new SkimmerError(status === 'timeout' ? 'TIMEOUT' : 'UNSUPPORTED', `mounting ${source} (${type}) at ${target} failed: ${stderr}; see dmesg`)
}

/** 'busy': someone still uses it and `lazy` was not asked for. Throws INTERNAL or TIMEOUT for anything else but "not mounted". */
export async function unmount(target: string, options: { lazy?: boolean; timeoutMs: number }): Promise<'done' | 'busy'> {
  const number = UMOUNT_NUMBER[process.arch]
  if (number === undefined) throw new SkimmerError('UNSUPPORTED', `unmounting on ${process.arch} is not known; unmount ${target} by hand`)
  const flags = UMOUNT_NOFOLLOW | (options.lazy === true ? MNT_DETACH : 0)
  const script = 'exit 0 if syscall($ARGV[0]+0, $ARGV[1], $ARGV[2]+0) == 0; print STDERR $!; exit($!{EBUSY} ? 16 : $!{EINVAL} || $!{ENOENT} ? 0 : 1)'
  const { status, stderr } = await runChild('perl', ['-MErrno', '-e', script, String(number), target, String(flags)], options.timeoutMs)
  if (status === 0) return 'done'
  if (status === 16) return 'busy'
  throw new SkimmerError(status === 'timeout' ? 'TIMEOUT' : 'INTERNAL', `unmounting ${target} failed: ${stderr}`)
}
