// Certificates for hosts whose TLS is opened, signed on the fly by the user's own authority.
import { createPrivateKey, type KeyObject, randomBytes, type webcrypto, X509Certificate } from 'node:crypto'
import { isIP } from 'node:net'
import { createSecureContext, type SecureContext } from 'node:tls'
import { LRUCache } from 'lru-cache'
import { SkimmerError } from '../../oci/errors.ts'

type X509 = typeof import('@peculiar/x509')

const DAY_MS = 86_400_000
const VALID_DAYS = 30
/** Clocks of clients are off by hours at times. */
const BACKDATED_MS = DAY_MS
const MOST_KEPT = 1000
/** Names that a certificate is made for; SNI comes from outside. */
const NAME = /^(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/
const CURVES: Record<string, { name: string; hash: string }> = {
  prime256v1: { name: 'P-256', hash: 'SHA-256' },
  secp384r1: { name: 'P-384', hash: 'SHA-384' },
  secp521r1: { name: 'P-521', hash: 'SHA-512' },
}

interface Signer {
  readonly x509: X509
  readonly issuer: InstanceType<X509['X509Certificate']>
  readonly key: webcrypto.CryptoKey
  readonly algorithm: { name: string; hash?: string }
}

export class LeafCertificates {
  readonly #chain: string
  readonly #notAfter: number
  readonly #signer: Signer
  /** One key for all of them: it never leaves this process. */
  readonly #key: webcrypto.CryptoKeyPair
  readonly #pem: string
  readonly #contexts = new LRUCache<string, SecureContext>({ max: MOST_KEPT, ttl: ((VALID_DAYS / 2) * DAY_MS) })
  readonly #making = new Map<string, Promise<SecureContext>>()
  readonly #onMade: () => void

  /** `cert`, `key`: PEM of the authority; certificates after the first in `cert` are sent along. INVALID_ARGUMENT: they do not fit, or may not sign. */
  static async open(authority: { cert: string; key: string }, options: { onMade?: () => void } = {}): Promise<LeafCertificates> {
    const { certificate, key } = readAuthority(authority)
    // Some 90 ms of loading, and a polyfill that the library needs: only for those who open TLS.
    await import('reflect-metadata')
    const x509 = await import('@peculiar/x509')
    const { imported, signing } = algorithmOf(key)
    const signer: Signer = { x509, issuer: new x509.X509Certificate(certificate.raw), key: key.toCryptoKey(imported, false, ['sign']), algorithm: signing }
    const pair = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify'])
    const pem = Buffer.from(await crypto.subtle.exportKey('pkcs8', pair.privateKey)).toString('base64')
    return new LeafCertificates(signer, pair, `-----BEGIN PRIVATE KEY-----\n${pem}\n-----END PRIVATE KEY-----\n`, authority.cert, certificate.validToDate.getTime(), options.onMade)
  }

  private constructor(signer: Signer, key: webcrypto.CryptoKeyPair, pem: string, chain: string, notAfter: number, onMade: (() => void) | undefined) {
    this.#signer = signer
    this.#key = key
    this.#pem = pem
    this.#chain = chain
    this.#notAfter = notAfter
    this.#onMade = onMade ?? (() => {})
  }

  /** What a TLS server for this host needs; made once, kept for half its life. INVALID_ARGUMENT: no name of a host. */
  async context(host: string): Promise<SecureContext> {
    const name = host.toLowerCase().replace(/^\[(.*)\]$/, '$1').replace(/\.$/, '')
    if (isIP(name) === 0 && !NAME.test(name)) throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(host.slice(0, 100))} is not the name of a host`)
    const kept = this.#contexts.get(name)
    if (kept !== undefined) return kept
    let making = this.#making.get(name)
    if (making === undefined) {
      making = this.#make(name).finally(() => this.#making.delete(name))
      this.#making.set(name, making)
    }
    return await making
  }

  async #make(name: string): Promise<SecureContext> {
    const { x509, issuer, key, algorithm } = this.#signer
    if (this.#notAfter <= Date.now()) throw new SkimmerError('INVALID_ARGUMENT', 'the authority that signs for opened TLS has expired')
    const serial = randomBytes(16)
    serial[0] &= 0x7f // positive
    serial[0] |= 0x40 // and always of 16 bytes
    const issuerKeyId = issuer.getExtension(x509.SubjectKeyIdentifierExtension)?.keyId
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: serial.toString('hex'),
      issuer: issuer.subjectName,
      // A common name holds 64 characters; clients look at the alternative names only.
      subject: [{ CN: [name.length <= 64 ? name : 'skimmer'] }],
      notBefore: new Date(Date.now() - BACKDATED_MS),
      notAfter: new Date(Math.min(Date.now() + VALID_DAYS * DAY_MS, this.#notAfter)),
      publicKey: this.#key.publicKey,
      signingKey: key,
      signingAlgorithm: algorithm,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
        new x509.SubjectAlternativeNameExtension([{ type: isIP(name) === 0 ? 'dns' : 'ip', value: name }]),
        await x509.SubjectKeyIdentifierExtension.create(this.#key.publicKey),
        ...(issuerKeyId === undefined ? [] : [new x509.AuthorityKeyIdentifierExtension(issuerKeyId)]),
      ],
    })
    const context = createSecureContext({ cert: `${certificate.toString('pem')}\n${this.#chain}`, key: this.#pem })
    this.#contexts.set(name, context)
    this.#onMade()
    return context
  }
}

function readAuthority({ cert, key: keyText }: { cert: string; key: string }): { certificate: X509Certificate; key: KeyObject } {
  const wrong = (words: string, cause?: unknown): SkimmerError => new SkimmerError('INVALID_ARGUMENT', `intercept: ${words}`, { cause })
  let certificate: X509Certificate
  let key: KeyObject
  try {
    certificate = new X509Certificate(cert)
  } catch (cause) {
    throw wrong('cert is not a PEM certificate', cause)
  }
  try {
    key = createPrivateKey(keyText)
  } catch (cause) {
    throw wrong('key is not a PEM private key without a passphrase', cause)
  }
  if (!certificate.checkPrivateKey(key)) throw wrong('key does not belong to cert')
  if (!certificate.ca) throw wrong('cert is not the certificate of an authority (CA:TRUE): it may not sign others')
  if (certificate.validToDate.getTime() <= Date.now()) throw wrong(`cert expired on ${certificate.validTo}`)
  return { certificate, key }
}

function algorithmOf(key: KeyObject): { imported: Parameters<KeyObject['toCryptoKey']>[0]; signing: { name: string; hash?: string } } {
  if (key.asymmetricKeyType === 'rsa') {
    const rsa = { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' }
    return { imported: rsa, signing: rsa }
  }
  if (key.asymmetricKeyType === 'ed25519') return { imported: { name: 'Ed25519' }, signing: { name: 'Ed25519' } }
  const curve = CURVES[key.asymmetricKeyDetails?.namedCurve ?? '']
  if (key.asymmetricKeyType !== 'ec' || curve === undefined) throw new SkimmerError('INVALID_ARGUMENT', 'intercept: key is neither RSA nor Ed25519 nor on one of the curves P-256, P-384, P-521')
  return { imported: { name: 'ECDSA', namedCurve: curve.name }, signing: { name: 'ECDSA', hash: curve.hash } }
}
