// How a mount of the fuse-native process is recognised in the mount table: its source names the process.
export const FUSE_NATIVE_SOURCE = 'skimmer-native:'

/** The process behind a mount's source, if it is one of these. */
export function fuseNativePid(source: string): number | undefined {
  const pid = source.startsWith(FUSE_NATIVE_SOURCE) ? Number(source.slice(FUSE_NATIVE_SOURCE.length)) : Number.NaN
  return Number.isInteger(pid) && pid > 1 ? pid : undefined
}
