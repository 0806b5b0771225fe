// Who may change things over HTTP: a bearer token where one is configured, else only people on this host, and never a web page elsewhere.
import { isIP } from 'node:net'
import type { NextFunction, Request, Response } from 'express'
import { SkimmerError } from '../oci/errors.ts'
import { sameSecret } from './control-server.ts'

/**
 * Reading is open; everything else needs the token, or without a configured token a caller on a loopback address. A browser on this host
 * runs pages of others: a request that a page made (Origin), or that came by a name pointed at loopback (Host), is not the user's.
 */
export function guardMutations(token: string | undefined) {
  return (request: Request, _response: Response, next: NextFunction): void => {
    if (request.method === 'GET' || request.method === 'HEAD' || request.method === 'OPTIONS') return next()
    const given = /^Bearer (.+)$/i.exec(request.get('authorization') ?? '')?.[1]
    if (token !== undefined) {
      if (given === undefined) throw new SkimmerError('UNAUTHORIZED', 'this needs the API token: send it as "Authorization: Bearer …"')
      if (!sameSecret(given, token)) throw new SkimmerError('FORBIDDEN', 'the API token is wrong')
      return next()
    }
    if (!isLoopbackAddress(request.socket.remoteAddress) || request.get('x-forwarded-for') !== undefined || request.get('forwarded') !== undefined) {
      throw new SkimmerError('FORBIDDEN', 'only callers on the supernode\'s own host may change things while no API token is configured (http.token-file)')
    }
    const host = hostOf(request.get('host'))
    const origin = request.get('origin')
    if (!(host === 'localhost' || isIP(host) !== 0) || (origin !== undefined && origin !== `http://${request.get('host')}`)) {
      throw new SkimmerError('FORBIDDEN', 'this request was made by a web page of another origin')
    }
    next()
  }
}

const isLoopbackAddress = (address: string | undefined): boolean => address !== undefined && (/^(?:::ffff:)?127\./.test(address) || address === '::1')

function hostOf(header: string | undefined): string {
  const bracketed = /^\[([^\]]*)\]/.exec(header ?? '')
  return bracketed !== null ? bracketed[1] : (header ?? '').split(':', 1)[0].toLowerCase()
}
