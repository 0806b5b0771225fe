// Jest reporter: the last line counts the tests, `N passed, N failed, N skipped`, whatever else was printed.
module.exports = class CountReporter {
  onRunComplete(_contexts, results) {
    // A file that could not even be loaded has no tests to count: it is a failure all the same.
    const failed = results.numFailedTests + results.numRuntimeErrorTestSuites
    const skipped = results.numPendingTests + results.numTodoTests
    process.on('exit', () => process.stdout.write(`${results.numPassedTests} passed, ${failed} failed, ${skipped} skipped\n`))
  }
}
