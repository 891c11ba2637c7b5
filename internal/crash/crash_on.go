//go:build crash

package crash

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var (
	passed atomic.Int64
	limit  = func() int64 { n, _ := strconv.ParseInt(os.Getenv("BERTH_CRASH"), 10, 64); return n }()
	log    = os.Getenv("BERTH_CRASH_LOG")
)

// What a process obeys is not for those that it starts, but BERTH_CRASH_CHILD is.
func init() {
	for _, name := range []string{"BERTH_CRASH", "BERTH_CRASH_LOG"} {
		child := strings.Replace(name, "CRASH", "CRASH_CHILD", 1)
		os.Setenv(name, os.Getenv(child))
		os.Unsetenv(child)
	}
}

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
