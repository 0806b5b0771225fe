// The OpenAPI document, made of the routes' own schemas.
import { z } from 'zod'
import { errorSchema } from './http-schemas.ts'

export interface Route {
  readonly method: 'get' | 'post' | 'delete'
  /** Under /api/v1, parameters as `{name}`. */
  readonly path: string
  readonly summary: string
  readonly body?: z.ZodType
  /** Without one the answer is 204. */
  readonly answer?: z.ZodType
  readonly status?: number
  readonly run: (call: { params: Record<string, string>; body: unknown }) => unknown
}

// The schemas of what goes in and what comes out: OpenAPI 3.1 takes JSON Schema as it is.
const jsonSchema = (schema: z.ZodType, io: 'input' | 'output'): object => {
  const { $schema: _, ...plain } = z.toJSONSchema(schema, { target: 'draft-2020-12', io })
  return plain
}

export function openApiDocument(routes: readonly Route[]): object {
  const paths: Record<string, Record<string, object>> = {}
  for (const { method, path, summary, body, answer, status } of routes) {
    const parameters = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => ({ name, in: 'path', required: true, schema: { type: 'string' } }))
    const success = answer === undefined ? { 204: { description: 'done' } } : { [status ?? 200]: { description: 'success', content: { 'application/json': { schema: jsonSchema(answer, 'output') } } } }
    paths[`/api/v1${path}`] ??= {}
    paths[`/api/v1${path}`][method] = {
      summary, parameters,
      ...(body === undefined ? {} : { requestBody: { required: true, content: { 'application/json': { schema: jsonSchema(body, 'input') } } } }),
      ...(method === 'get' ? {} : { security: [{ token: [] }, {}] }),
      responses: { ...success, default: { description: 'an error', content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } } } },
    }
  }
  return {
    openapi: '3.1.0',
    info: { title: 'Skimmer supernode', version: 'v1', description: 'Changing things needs the configured API token; without one, only callers on the supernode\'s own host may.' },
    paths,
    components: { schemas: { Error: jsonSchema(errorSchema, 'output') }, securitySchemes: { token: { type: 'http', scheme: 'bearer' } } },
  }
}
