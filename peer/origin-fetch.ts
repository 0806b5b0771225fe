// The way back to the source for blocks that no peer and no supernode can bring.
import type { FetchFailures } from './fetch-failures.ts'
import type { FetchTask, Origin } from './fetch-task.ts'
import type { Resource } from './resource.ts'

/** Marks the tasks while the origin works on them. It stores blocks itself; the resource tells of each. Never rejects. */
export async function bringFromOrigin(origin: Origin, resource: Resource, tasks: readonly FetchTask[], timeoutMs: number, failures: FetchFailures): Promise<void> {
  for (const task of tasks) task.atOrigin = true
  try {
    await origin(resource.id, tasks.map(task => task.block).sort((a, b) => a - b), AbortSignal.timeout(timeoutMs))
  } catch (error) {
    failures.note('registry', (error as Error).message)
  }
  for (const task of tasks) task.atOrigin = false
}
