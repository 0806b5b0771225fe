// The peers of one resource: who holds how much of it, near whom, and who fetches from whom. All steps cost the same for 10 or 10,000 peers.
import type { SchedulerPeer } from './scheduler-peer.ts'

/** One peer's share in one resource. */
export interface Holding {
  readonly peer: SchedulerPeer
  /** Order of joining; a tree parent is whole or joined earlier, so that the tree has no circles. */
  readonly sequence: number
  whole: boolean
  /** 0..1 */
  fill: number
  seen: number
  /** Children and when their lease ends, soonest first (a renewed lease moves to the end). */
  readonly children: Map<string, Lease>
  readonly parents: Set<Holding>
  treeChildren: number
  treeParent: Holding | undefined
  /** Steps to its root when it got its tree parent; parents may have moved since. */
  depth: number
}

export interface Lease {
  readonly child: Holding
  expires: number
}

/** A set with O(1) add, remove and random access. */
class Bag {
  readonly items: Holding[] = []
  readonly #at = new Map<Holding, number>()

  add(item: Holding): void {
    if (this.#at.has(item)) return
    this.#at.set(item, this.items.length)
    this.items.push(item)
  }

  remove(item: Holding): void {
    const at = this.#at.get(item)
    if (at === undefined) return
    this.#at.delete(item)
    const last = this.items.pop()!
    if (last === item) return
    this.items[at] = last
    this.#at.set(last, at)
  }
}

export class Swarm {
  readonly holdings = new Map<string, Holding>()
  /** Holders that are whole are few at first, and the best to ask: they have a bag of their own. */
  readonly #whole = new Bag()
  readonly #all = new Bag()
  readonly #byZone = new Map<string, Bag>()
  readonly #byRack = new Map<string, Bag>()
  #sequence = 0

  join(peer: SchedulerPeer, now: number): Holding {
    const known = this.holdings.get(peer.id)
    if (known !== undefined) {
      known.seen = now
      return known
    }
    const holding: Holding = { peer, sequence: this.#sequence++, whole: false, fill: 0, seen: now, children: new Map(), parents: new Set(), treeChildren: 0, treeParent: undefined, depth: 0 }
    this.holdings.set(peer.id, holding)
    this.#place(holding)
    return holding
  }

  update(holding: Holding, whole: boolean, fill: number, now: number): void {
    if (holding.whole && !whole) {
      // It may need parents again: those who joined before it can no longer hang below it, or the tree would get circles.
      for (const { child } of holding.children.values()) if (child.treeParent === holding && child.sequence < holding.sequence) this.graft(child, undefined)
    }
    holding.whole = whole
    holding.fill = whole ? 1 : Math.min(1, fill)
    holding.seen = now
    if (whole) {
      this.#whole.add(holding)
      // Who has it all asks nobody: its parents are free for others.
      for (const parent of holding.parents) this.release(parent, holding)
    } else {
      this.#whole.remove(holding)
    }
  }

  leave(peerId: string): void {
    const holding = this.holdings.get(peerId)
    if (holding === undefined) return
    for (const parent of holding.parents) this.release(parent, holding)
    for (const lease of holding.children.values()) this.release(holding, lease.child)
    this.holdings.delete(peerId)
    this.#unplace(holding)
  }

  /** After a peer's labels have changed: its buckets are those of the old labels until `change` has run. */
  relabel(peerId: string, change: () => void): void {
    const holding = this.holdings.get(peerId)
    if (holding !== undefined) this.#unplace(holding)
    change()
    if (holding !== undefined) this.#place(holding)
  }

  lease(parent: Holding, child: Holding, expires: number): void {
    const lease = parent.children.get(child.peer.id)
    if (lease !== undefined) {
      lease.expires = expires
      parent.children.delete(child.peer.id)
      parent.children.set(child.peer.id, lease)
      return
    }
    parent.children.set(child.peer.id, { child, expires })
    child.parents.add(parent)
    parent.peer.children.set(child.peer.id, (parent.peer.children.get(child.peer.id) ?? 0) + 1)
  }

  release(parent: Holding, child: Holding): void {
    if (child.treeParent === parent) this.graft(child, undefined)
    child.parents.delete(parent)
    if (!parent.children.delete(child.peer.id)) return
    const left = (parent.peer.children.get(child.peer.id) ?? 1) - 1
    if (left <= 0) parent.peer.children.delete(child.peer.id)
    else parent.peer.children.set(child.peer.id, left)
  }

  graft(child: Holding, parent: Holding | undefined): void {
    if (child.treeParent === parent) return
    if (child.treeParent !== undefined) child.treeParent.treeChildren--
    child.treeParent = parent
    child.depth = parent === undefined ? 0 : parent.depth + 1
    if (parent !== undefined) parent.treeChildren++
  }

  /** Leases whose time is over stop counting. */
  expire(parent: Holding, now: number): void {
    for (const lease of parent.children.values()) {
      if (lease.expires > now) return
      this.release(parent, lease.child)
    }
  }

  /** Up to `count` different holders, near ones and whole ones first, random within. */
  *sample(asker: SchedulerPeer, count: number, random: () => number): Generator<Holding> {
    const seen = new Set<Holding>()
    const rack = asker.rack === undefined ? undefined : this.#byRack.get(asker.rack)
    const zone = asker.zone === undefined ? undefined : this.#byZone.get(asker.zone)
    for (const bag of [rack, zone, this.#whole, this.#all]) {
      if (bag === undefined || bag.items.length === 0) continue
      // A quarter for each circle, all that is left for the widest: a full rack must not hide the rest of the datacenter.
      const limit = bag === this.#all ? count - seen.size : Math.ceil(count / 4)
      const { items } = bag
      const start = Math.floor(random() * items.length)
      for (let step = 0, taken = 0; step < items.length && step < 2 * count && taken < limit; step++) {
        const item = items[(start + step) % items.length]
        if (seen.has(item)) continue
        seen.add(item)
        taken++
        yield item
      }
    }
  }

  #place(holding: Holding): void {
    this.#all.add(holding)
    if (holding.whole) this.#whole.add(holding)
    const { zone, rack } = holding.peer
    if (zone !== undefined) bagOf(this.#byZone, zone).add(holding)
    if (rack !== undefined) bagOf(this.#byRack, rack).add(holding)
  }

  #unplace(holding: Holding): void {
    this.#all.remove(holding)
    this.#whole.remove(holding)
    const { zone, rack } = holding.peer
    if (zone !== undefined) dropFrom(this.#byZone, zone, holding)
    if (rack !== undefined) dropFrom(this.#byRack, rack, holding)
  }
}

function bagOf(bags: Map<string, Bag>, key: string): Bag {
  let bag = bags.get(key)
  if (bag === undefined) bags.set(key, (bag = new Bag()))
  return bag
}

function dropFrom(bags: Map<string, Bag>, key: string, holding: Holding): void {
  const bag = bags.get(key)
  bag?.remove(holding)
  if (bag?.items.length === 0) bags.delete(key)
}
