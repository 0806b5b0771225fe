// Moved to command-line/: kept until nothing asks for it here.
export * from '../command-line/progress.ts'
