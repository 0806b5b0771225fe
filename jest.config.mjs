// Jest: ESM, TypeScript by type stripping, one worker process a core.
export default {
  testEnvironment: 'node',
  roots: ['<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  extensionsToTreatAsEsm: ['.ts'],
  moduleFileExtensions: ['ts', 'mjs', 'js', 'cjs', 'json', 'node'],
  transform: { '\\.ts$': '<rootDir>/test/strip-types-transform.cjs' },
  reporters: ['default', '<rootDir>/test/count-reporter.cjs'],
  setupFilesAfterEnv: ['<rootDir>/test/retry.ts'],
  maxWorkers: 2,
  workerIdleMemoryLimit: '700MB',
  testTimeout: 60_000,
}
