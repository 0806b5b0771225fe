// Sources as this user may read them: with the credentials of docker login and of AWS's tools, and files of this machine.
import { loadDockerConfig } from '../oci/docker-config.ts'
import type { S3Settings } from '../source/s3-signer.ts'
import { Sources, type SourceRequest } from '../source/sources.ts'
import type { DfgetWords } from './read-options.ts'

export function ownSources({ values }: DfgetWords): Sources {
  return new Sources({ credentials: loadDockerConfig() }, { files: true, s3Credentials: true, connections: Math.max(64, values.connections * values['max-concurrent-requests']) })
}

export function sourceRequestOf({ values, headers, ca }: DfgetWords): SourceRequest {
  const s3: S3Settings = {
    endpoint: values['storage-endpoint'],
    region: values['storage-region'],
    accessKeyId: values['storage-access-key-id'],
    secretAccessKey: values['storage-access-key-secret'],
    sessionToken: values['storage-session-token'],
  }
  return { headers, ...(ca !== undefined && { ca }), ...(values.insecure && { insecure: true }), s3: Object.fromEntries(Object.entries(s3).filter(([, value]) => value !== undefined)) }
}
