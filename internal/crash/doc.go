// Package crash lets a test kill the process at a chosen point. In a normal
// build it does nothing and costs nothing; with the build tag crash it obeys
// BERTH_CRASH and BERTH_CRASH_LOG.
package crash
