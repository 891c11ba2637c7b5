//go:build crash

package crash

import (
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
)

var (
	passed atomic.Int64
	limit  = func() int64 { n, _ := strconv.ParseInt(os.Getenv("BERTH_CRASH"), 10, 64); return n }()
	log    = os.Getenv("BERTH_CRASH_LOG")
)

// Point kills the process, as kill -9 does, if it is the BERTH_CRASH-th that
// is passed. Its name is appended to the file BERTH_CRASH_LOG.
func Point(name string) {
	if log != "" {
		if f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
			f.WriteString(name + "\n")
			f.Close()
		}
	}
	if n := passed.Add(1); n == limit {
		syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	}
}
