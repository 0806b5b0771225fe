// Noise as libp2p has it, with less work for each message: keys are prepared once, and what belongs together is written at once.
import { createCipheriv, createDecipheriv, createSecretKey, hkdfSync, type KeyObject } from 'node:crypto'
import type { Socket } from 'node:net'
import { type ICryptoInterface, noise } from '@chainsafe/libp2p-noise'
import { defaultCrypto } from '@chainsafe/libp2p-noise/crypto'
import type { ConnectionEncrypter } from '@libp2p/interface'
import { Uint8ArrayList } from 'uint8arraylist'
import { MessageCutter } from './noise-messages.ts'
import { type Bytes, type Layer, handOn, sendOn, sendsNow } from './short-cuts.ts'
import { release, spend, whenSpent } from './spent-buffers.ts'

const ALGORITHM = 'chacha20-poly1305'
const TAG = { authTagLength: 16 } as const
/** Shorter messages are faster in the library's WebAssembly than with a cipher object of OpenSSL. */
const SHORT = 1200

/** Node takes bytes as a key as well, but makes a key of them each time: 12 µs of the 40 that a message of 64 KiB costs. */
const prepared = new WeakMap<Uint8Array, KeyObject>()

function prepare(key: Uint8Array): KeyObject {
  let made = prepared.get(key)
  if (made === undefined) prepared.set(key, made = createSecretKey(key))
  return made
}

/** The functions of the Noise library's own default, except for long messages. */
const crypto: ICryptoInterface = {
  ...defaultCrypto,

  /** The same in OpenSSL: the library's own, in JavaScript, is a hundred thousand calls for a handful of connections. */
  getHKDF(ck, ikm) {
    const bytes = hkdfSync('sha256', ikm, ck, '', 96)
    return [new Uint8Array(bytes, 0, 32), new Uint8Array(bytes, 32, 32), new Uint8Array(bytes, 64, 32)]
  },

  chaCha20Poly1305Encrypt(plaintext, nonce, ad, key) {
    if (plaintext.byteLength < SHORT) {
      const text = defaultCrypto.chaCha20Poly1305Encrypt(plaintext, nonce, ad, key)
      spend(plaintext)
      return text
    }
    const cipher = createCipheriv(ALGORITHM, prepare(key), nonce, TAG)
    cipher.setAAD(ad, { plaintextLength: plaintext.byteLength })
    const output = new Uint8ArrayList()
    for (const part of plaintext instanceof Uint8Array ? [plaintext] : plaintext) {
      const text = cipher.update(part)
      // A memory of its own, which goes when the socket has written it.
      if (text.byteLength >= SHORT && text.byteLength === text.buffer.byteLength) whenSpent(text, release)
      output.append(text)
    }
    cipher.final()
    output.append(cipher.getAuthTag())
    spend(plaintext)
    return output
  },

  chaCha20Poly1305Decrypt(ciphertext, nonce, ad, key, whole) {
    if (ciphertext.byteLength < SHORT) return defaultCrypto.chaCha20Poly1305Decrypt(ciphertext, nonce, ad, key, whole)
    const length = ciphertext.byteLength - TAG.authTagLength
    const decipher = createDecipheriv(ALGORITHM, prepare(key), nonce, TAG)
    decipher.setAAD(ad, { plaintextLength: length })
    decipher.setAuthTag(ciphertext.subarray(length))
    // `whole` is the ciphertext in one piece, where the library made it, to write the plaintext over it. One piece in is one piece out.
    const text = decipher.update(whole?.length === length ? whole : ciphertext.subarray(0, length))
    decipher.final()
    if (text.byteLength === text.buffer.byteLength) whenSpent(text, release)
    return text
  },
}

type Secure = ConnectionEncrypter['secureInbound']

/** The encrypter for libp2p's `connectionEncrypters`. */
export function lightNoise(): (components: Parameters<ReturnType<typeof noise>>[0]) => ConnectionEncrypter {
  const make = noise({ crypto })
  return (components) => {
    const encrypter = make(components) as unknown as ConnectionEncrypter
    for (const name of ['secureInbound', 'secureOutbound'] as const) {
      const secure = encrypter[name].bind(encrypter) as Secure
      encrypter[name] = ((connection, options) => {
        writeAtOnce(connection as unknown as OverSocket)
        return secure(connection, options).then((secured) => {
          shorten(secured.connection as unknown as Encrypted)
          return secured
        })
      }) as Secure
    }
    return encrypter
  }
}

/** The connection over TCP, of @libp2p/tcp. */
interface OverSocket extends Layer { readonly socket: Socket; sendData(data: Bytes): { sentBytes: number; canSendMore: boolean } }

/** The encrypted connection after the handshake, of the Noise library. */
interface Encrypted extends Layer {
  readonly stream: OverSocket
  readonly handshake: { encrypt(plaintext: Bytes): Bytes; decrypt(ciphertext: Uint8Array): Bytes }
  readonly decoder: { readonly buffer: Bytes; decode(data: Bytes): Iterable<Bytes> }
  encrypt(data: Bytes): Bytes
}

/** The longest text of one message: 65535 bytes with its tag. */
const MOST_PLAIN = 65_535 - TAG.authTagLength
/** So much may wait in a socket, bytes. What is more waits as it is: nothing is encrypted before its turn. */
const WRITE_AHEAD = 128 * 1024

/**
 * @libp2p/tcp writes each part of a message for itself: for every 64 KiB a packet with the two bytes of the length and one with the sixteen of the tag.
 * Here all that is to be sent goes with one writev.
 */
function writeAtOnce(connection: OverSocket): void {
  connection.sendData = data => ({ sentBytes: data.byteLength, canSendMore: write(connection.socket, data instanceof Uint8Array ? [data] : [...data]) })
}

function write(socket: Socket, parts: readonly Uint8Array[]): boolean {
  const last = parts.length - 1
  socket.cork()
  try {
    for (let index = 0; index <= last; index++) {
      // With an error the socket may still be using them.
      socket.write(parts[index], index < last ? undefined : (error) => { if (!error) spend(parts) })
    }
  } finally {
    socket.uncork()
  }
  return !socket.writableNeedDrain || socket.writableLength < WRITE_AHEAD
}

/** From the socket to the muxer and back in one call each. */
function shorten(connection: Encrypted): void {
  const { stream: below, handshake, decoder } = connection
  const cutter = new MessageCutter((ciphertext) => { connection.onData(handshake.decrypt(ciphertext)) })
  const cut = (data: Bytes): void => {
    if (data instanceof Uint8Array) cutter.push(data)
    else for (const part of data) cutter.push(part)
  }
  // What came right after the handshake.
  cut(decoder.buffer)
  // What had to wait comes by an event, whose listener gives it to the decoder.
  decoder.decode = (data) => {
    cut(data)
    return []
  }
  handOn(below, (data) => {
    try {
      cut(data)
    } catch (error) {
      connection.abort(error as Error)
    }
    // The read is all in messages that were decrypted, or copied: nobody has it.
    if (data instanceof Uint8Array && data.byteLength >= SHORT && data.byteLength === data.buffer.byteLength) release(data.buffer as ArrayBuffer)
  })
  sendOn(below, data => below.sendData(data).canSendMore)
  sendOn(connection, (data) => {
    if (data.byteLength > MOST_PLAIN || !sendsNow(below)) return below.send(connection.encrypt(data))
    if (write(below.socket, message(handshake.encrypt(data)))) return true
    below.writableNeedsDrain = true
    return false
  })
}

/** With its length before it; and what is short with that, since each part costs as much as the others. */
function message(ciphertext: Bytes): Uint8Array[] {
  const [first, ...rest] = ciphertext instanceof Uint8Array ? [ciphertext] : ciphertext
  const head = Buffer.allocUnsafe(first.length < SHORT ? 2 + first.length : 2)
  head.writeUInt16BE(ciphertext.byteLength)
  if (first.length >= SHORT) return [head, first, ...rest]
  head.set(first, 2)
  return [head, ...rest]
}
