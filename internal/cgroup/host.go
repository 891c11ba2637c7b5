package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// host is what the shares of a group are shares of.
type host struct {
	time   time.Duration // of all processors since boot
	online int           // processors
	memory int64         // bytes
}

func readHost() (host, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return host{}, err
	}
	var h host
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 8 || !strings.HasPrefix(f[0], "cpu") {
			break // processors are first
		}
		if f[0] != "cpu" {
			h.online++
			continue
		}
		// user nice system idle iowait irq softirq, in the kernel's USER_HZ, 100
		// on every architecture of Go's. Stolen time is nobody's, as in Docker.
		for _, v := range f[1:8] {
			h.time += time.Duration(number(v)) * (time.Second / 100)
		}
	}
	if h.memory, err = totalMemory(); err != nil {
		return host{}, err
	}
	return h, nil
}

// totalMemory returns the bytes of the host's memory.
func totalMemory() (int64, error) {
	var i unix.Sysinfo_t
	if err := unix.Sysinfo(&i); err != nil {
		return 0, fmt.Errorf("read the size of memory: %w", err)
	}
	return int64(uint64(i.Totalram) * uint64(i.Unit)), nil
}

// PSS returns the memory that processes take, in bytes: a page that several
// map is shared out among them (PSS, proc_pid_smaps(5)). A process that has
// ended takes none.
func PSS(pids []int) (int64, error) {
	var sum int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) != 3 || f[0] != "Pss:" {
				continue
			}
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
			}
			sum += kib << 10
		}
	}
	return sum, nil
}
