// One more try for tests that drive other people's programs (containerd, ctr, runc, the kernel) on a machine that others use too: ctr 1.6, for one,
// loses the output of short commands now and then. What fails first is printed, and what fails twice fails. Our own code's tests have no second try.
import { expect, jest } from '@jest/globals'

if (/\/test\/(e2e|snapshotter|blockdev|node)\//.test(expect.getState().testPath ?? '')) jest.retryTimes(1, { logErrorsBeforeRetry: true })
