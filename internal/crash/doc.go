// Package crash lets a test kill the process at a chosen point. In a normal
// build it does nothing and costs nothing; with the build tag crash it obeys
// BERTH_CRASH and BERTH_CRASH_LOG, and the berth that it starts BERTH_CRASH_CHILD
// and BERTH_CRASH_CHILD_LOG.
package crash
