package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth"
)

func stats(t *testing.T, g Group) Stats {
	t.Helper()
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const mib = 1 << 20

func TestStatsMemory(t *testing.T) {
	g := newGroup(t)
	host, err := totalMemory()
	if err != nil {
		t.Fatal(err)
	}
	if m := stats(t, g).Memory; m == nil || m.Limit != host || m.OOMKills != 0 {
		t.Errorf("an empty group: %+v, want a limit of %d", m, host)
	}
	put(t, g.dir("memory"), byMode(g, "memory.limit_in_bytes", "memory.max"), fmt.Sprint(64*mib))
	// The buffer is full when its first byte comes, and kept until the last.
	p := start(t, g, "dd if=/dev/zero bs=32M count=1 2>/dev/null")
	if _, err := p.out.ReadByte(); err != nil {
		t.Fatal(err)
	}
	m := stats(t, g).Memory
	if m.Usage < 32*mib || m.Usage > 40*mib || m.Total < m.Usage || m.Limit != 64*mib {
		t.Errorf("with 32 MiB in use: %+v", m)
	}
	if g.mode.Swap && (m.Swap == nil || m.Swap.Limit != -1) {
		t.Errorf("swap: %+v", m.Swap)
	}
	pss, err := PSS([]int{p.cmd.Process.Pid, 1 << 22})
	if err != nil || pss < mib/16 {
		t.Errorf("PSS %d, %v", pss, err)
	}
	if killed, err := g.OOMKilled(); err != nil || killed {
		t.Errorf("OOM killed: %v, %v", killed, err)
	}
}

func TestStatsOOM(t *testing.T) {
	g := newGroup(t)
	nested := g.mode.Group(g.String() + "/below")
	dir := g.dir("memory")
	put(t, dir, byMode(g, "memory.limit_in_bytes", "memory.max"), fmt.Sprint(16*mib))
	if g.mode.Swap {
		put(t, dir, byMode(g, "memory.memsw.limit_in_bytes", "memory.swap.max"), byMode(g, fmt.Sprint(16*mib), "0"))
		if s := stats(t, g).Memory.Swap; s.Limit != 0 {
			t.Errorf("swap: %+v, want a limit of 0", s)
		}
	}
	for i, g2 := range []Group{g, nested} {
		p := start(t, g2, "exec dd if=/dev/zero of=/dev/null bs=64M count=1")
		if err := p.cmd.Wait(); err == nil {
			t.Fatalf("64 MiB fit into 16")
		}
		if killed, err := g.OOMKilled(); err != nil || !killed {
			t.Errorf("OOM killed: %v, %v", killed, err)
		}
		if n := stats(t, g).Memory.OOMKills; n != int64(i)+1 {
			t.Errorf("%d kills, want %d", n, i+1)
		}
	}
	if _, err := g.mode.Group("/berth-test-none").OOMKilled(); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("a group that is not there: %v", err)
	}
}

func TestStatsCPU(t *testing.T) {
	g := newGroup(t)
	before := stats(t, g).CPU
	if g.mode.Version == V2 {
		put(t, g.dir("cpu"), "cpu.max", "20000 100000")
	} else {
		put(t, g.dir("cpu"), "cpu.cfs_quota_us", "20000")
	}
	start(t, g, "while :; do :; done")
	var after CPU
	until(t, "a tenth of a second is used, and more is refused", func() bool {
		after = *stats(t, g).CPU
		return after.Usage > 100*time.Millisecond && after.Throttled > 0
	})
	if after.User <= 0 || after.User+after.Kernel > after.Usage+50*time.Millisecond || after.Periods == 0 || after.ThrottledPeriods == 0 || after.Online < 1 {
		t.Errorf("%+v", after)
	}
	// A fifth of one processor, and half a second is enough to see it; the first
	// period may give twice its share.
	if p := after.Percent(*before); p < 2 || p > 60 {
		t.Errorf("%.1f %%, want about 20: %+v, %+v", p, before, after)
	}
}

func TestPercent(t *testing.T) {
	before := CPU{Usage: time.Second, Host: 100 * time.Second, Online: 4}
	after := CPU{Usage: 3 * time.Second, Host: 104 * time.Second, Online: 4}
	if p := after.Percent(before); p != 200 {
		t.Errorf("%v, want 200", p)
	}
	if p := before.Percent(after) + after.Percent(after); p != 0 {
		t.Errorf("%v, want 0", p)
	}
}

func TestStatsPids(t *testing.T) {
	g := newGroup(t)
	if p := stats(t, g).Pids; *p != (Use{0, -1}) {
		t.Errorf("an empty group: %+v", p)
	}
	put(t, g.dir("pids"), "pids.max", "2")
	p := start(t, g, "sleep 1000 & echo one; sleep 1000 & echo two; wait")
	p.line(t)
	if p := stats(t, g).Pids; *p != (Use{2, 2}) {
		t.Errorf("full: %+v", p)
	}
}

func TestStatsOfWhatIsNotThere(t *testing.T) {
	m := detect(t)
	if _, err := m.Group("/berth-test-none").Stats(); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("a group that is not there: %v", err)
	}
	g := newGroup(t)
	g.mode.Mounts = maps.Clone(g.mode.Mounts)
	for _, c := range []string{"memory", "pids", "cpuacct", "io", "blkio"} {
		delete(g.mode.Mounts, c)
	}
	s, err := g.Stats()
	if err != nil || s.Memory != nil || s.Pids != nil || s.IO != nil || (s.CPU != nil) != (g.mode.Version == V2) {
		t.Errorf("without controllers: %+v, %v", s, err)
	}
	if killed, err := g.OOMKilled(); killed || err != nil {
		t.Errorf("without controllers: %v, %v", killed, err)
	}
}

// loop returns a block device of four MiB.
func loop(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 4*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = exec.Command("modprobe", "loop").Run()
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	dev := strings.TrimSpace(string(out))
	if err != nil {
		t.Skipf("no loop devices here: %v: %s", err, dev)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return dev
}

func TestThrottle(t *testing.T) {
	g := newGroup(t)
	dev := loop(t)
	l := berth.Limits{DeviceReadBps: []berth.Throttle{{Device: dev, Rate: mib}}, DeviceWriteBps: []berth.Throttle{{Device: dev, Rate: 2 * mib}}}
	if err := Check(l, g.mode); err != nil {
		t.Fatal(err)
	}
	if err := g.Throttle(l); err != nil {
		t.Fatal(err)
	}
	read := func(skip int) time.Duration {
		begin := time.Now()
		p := start(t, g, fmt.Sprintf("exec dd if=%s of=/dev/null bs=64k count=24 skip=%d", dev, skip))
		if err := p.cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		return time.Since(begin)
	}
	if d := read(0); d < time.Second {
		t.Errorf("1.5 MiB at 1 MiB/s in %v", d)
	}
	if io := stats(t, g).IO; io == nil || io.Read < 3*mib/2 {
		t.Errorf("I/O after 1.5 MiB: %+v", io)
	}
	if err := g.Throttle(berth.Limits{}); err != nil {
		t.Fatal(err)
	}
	if d := read(32); d > time.Second {
		t.Errorf("1.5 MiB without a limit in %v", d)
	}
	s, _ := readFile(g)
	if strings.Contains(s, ":") {
		t.Errorf("rates are left: %s", s)
	}
	if err := g.mode.Group("/berth-test-none").Throttle(l); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("a group that is not there: %v", err)
	}
}

func readFile(g Group) (string, bool) {
	return read(g.dir("io"), byMode(g, "blkio.throttle.write_bps_device", "io.max"))
}
