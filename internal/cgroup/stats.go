package cgroup

import (
	"fmt"
	"os"
	"strings"
	"time"

	"berth"
)

// Stats is what a group uses. What this host does not count is nil.
type Stats struct {
	CPU    *CPU    `json:"cpu,omitempty"`
	Memory *Memory `json:"memory,omitempty"`
	Pids   *Use    `json:"pids,omitempty"`
	IO     *IO     `json:"io,omitempty"`
}

// CPU is the processor time since the group was made.
type CPU struct {
	Usage            time.Duration `json:"usage"`
	User             time.Duration `json:"user"`
	Kernel           time.Duration `json:"kernel"`
	Periods          int64         `json:"periods"` // that a quota was counted in
	ThrottledPeriods int64         `json:"throttledPeriods"`
	Throttled        time.Duration `json:"throttled"`

	// Host is the time of all processors since boot, idle or not, and Online
	// how many there are.
	Host   time.Duration `json:"host"`
	Online int           `json:"online"`
}

// Percent returns the share of one processor since an earlier reading: 200 is
// two of them. It is the sum docker stats shows.
func (c CPU) Percent(before CPU) float64 {
	used, host := c.Usage-before.Usage, c.Host-before.Host
	if used <= 0 || host <= 0 {
		return 0
	}
	return float64(used) / float64(host) * float64(c.Online) * 100
}

// Use is an amount and its limit; -1 is none.
type Use struct {
	Current int64 `json:"current"`
	Limit   int64 `json:"limit"`
}

// Memory is in bytes.
type Memory struct {
	// Usage is without the page cache that nobody has used lately, which the
	// kernel takes back before it refuses: what Docker shows.
	Usage int64 `json:"usage"`
	Limit int64 `json:"limit"` // the host's memory if the group has none
	Total int64 `json:"total"` // as the kernel counts it
	// Swap is what is swapped out; nil where it is not counted.
	Swap *Use `json:"swap,omitempty"`
	// OOMKills counts the processes that the kernel ended for want of memory.
	OOMKills int64 `json:"oomKills"`
}

// IO is the bytes read from and written to block devices.
type IO struct {
	Read  int64 `json:"read"`
	Write int64 `json:"write"`
}

// Stats returns what the group uses now. It returns an error that matches
// [berth.ErrNotFound] if there is no such group.
func (g Group) Stats() (Stats, error) {
	if !g.Exists() {
		return Stats{}, fmt.Errorf("read cgroup %s: %w", g.path, berth.ErrNotFound)
	}
	host, err := readHost()
	if err != nil {
		return Stats{}, fmt.Errorf("read cgroup %s: %w", g.path, err)
	}
	s := Stats{CPU: g.cpu(), Memory: g.memory(host.memory), IO: g.io()}
	if s.CPU != nil {
		s.CPU.Host, s.CPU.Online = host.time, host.online
	}
	if n, ok := value(g.dir("pids"), "pids.current"); ok {
		limit, _ := value(g.dir("pids"), "pids.max")
		s.Pids = &Use{n, limit}
	}
	return s, nil
}

func (g Group) cpu() *CPU {
	if g.mode.Version == V2 {
		// The kernel counts here without the controller, except for quotas.
		t, ok := table(g.dir(""), "cpu.stat")
		if !ok {
			return nil
		}
		return &CPU{
			Usage: micros(t["usage_usec"]), User: micros(t["user_usec"]), Kernel: micros(t["system_usec"]),
			Periods: t["nr_periods"], ThrottledPeriods: t["nr_throttled"], Throttled: micros(t["throttled_usec"]),
		}
	}
	dir := g.dir("cpuacct")
	usage, ok := value(dir, "cpuacct.usage")
	if !ok {
		return nil
	}
	user, _ := value(dir, "cpuacct.usage_user")
	kernel, _ := value(dir, "cpuacct.usage_sys")
	t, _ := table(g.dir("cpu"), "cpu.stat")
	return &CPU{
		Usage: time.Duration(usage), User: time.Duration(user), Kernel: time.Duration(kernel),
		Periods: t["nr_periods"], ThrottledPeriods: t["nr_throttled"], Throttled: time.Duration(t["throttled_time"]),
	}
}

func micros(n int64) time.Duration { return time.Duration(n) * time.Microsecond }

func (g Group) memory(host int64) *Memory {
	dir := g.dir("memory")
	names := [...]string{"memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"}
	if g.mode.Version == V2 {
		names = [...]string{"memory.current", "memory.max", "inactive_file"}
	}
	total, ok := value(dir, names[0])
	if !ok {
		return nil
	}
	limit, _ := value(dir, names[1])
	stat, _ := table(dir, "memory.stat")
	m := &Memory{Usage: total, Limit: limit, Total: total, OOMKills: g.oomKills()}
	if cache := stat[names[2]]; cache < total {
		m.Usage = total - cache
	}
	if limit < 0 || limit > host {
		m.Limit = host
	}
	if g.mode.Version == V2 {
		if n, ok := value(dir, "memory.swap.current"); ok {
			most, _ := value(dir, "memory.swap.max")
			m.Swap = &Use{n, most}
		}
	} else if both, ok := value(dir, "memory.memsw.limit_in_bytes"); ok {
		m.Swap = &Use{stat["total_swap"], -1}
		if both < unlimited {
			m.Swap.Limit = max(0, both-limit)
		}
	}
	return m
}

// unlimited is where v1 has no limit: its counters are of pages and its most
// is less than a whole one below 1<<63, whatever the size of a page.
const unlimited = 1<<63 - 1<<20

func (g Group) oomKills() int64 {
	dir := g.dir("memory")
	if g.mode.Version == V2 {
		t, _ := table(dir, "memory.events")
		return t["oom_kill"]
	}
	// v1 counts where the process was (mm/memcontrol.c memcg_memory_event stops
	// at the first group), v2 in all groups above it too.
	var n int64
	for _, d := range below(dir) {
		t, _ := table(d, "memory.oom_control")
		n += t["oom_kill"]
	}
	return n
}

// OOMKilled reports whether the kernel has ended a process of the group for
// want of memory. It must be asked before the runtime deletes the group;
// without a memory controller nothing is.
func (g Group) OOMKilled() (bool, error) {
	if !g.mode.Has("memory") {
		return false, nil
	}
	if _, err := os.Stat(g.dir("memory")); err != nil {
		return false, fmt.Errorf("read cgroup %s: %w", g.path, berth.ErrNotFound)
	}
	return g.oomKills() > 0, nil
}

func (g Group) io() *IO {
	if g.mode.Version == V2 {
		s, ok := read(g.dir("io"), "io.stat")
		if !ok {
			return nil
		}
		var io IO
		for _, w := range strings.Fields(s) { // 8:0 rbytes=1 wbytes=2 rios=…
			switch k, v, _ := strings.Cut(w, "="); k {
			case "rbytes":
				io.Read += number(v)
			case "wbytes":
				io.Write += number(v)
			}
		}
		return &io
	}
	const file = "blkio.throttle.io_service_bytes_recursive"
	s, ok := read(g.dir("blkio"), file)
	if !ok {
		return nil
	}
	// Linux 6.10 and later count for v1 only on disks that something was
	// throttled on (block/blk-throttle.h blk_throtl_activated): no line of any
	// disk, in the root either, is no count rather than no I/O.
	if !strings.Contains(s, ":") {
		if all, _ := read(g.mode.Mounts["blkio"], file); !strings.Contains(all, ":") {
			return nil
		}
	}
	var io IO
	for line := range strings.Lines(s) { // 8:0 Read 1
		f := strings.Fields(line)
		switch {
		case len(f) != 3:
		case f[1] == "Read":
			io.Read += number(f[2])
		case f[1] == "Write":
			io.Write += number(f[2])
		}
	}
	return &io
}
