package cgroup

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth"
)

// runtime runs a container runtime.
func runtime(t *testing.T, ctx context.Context, name string, stdin io.Reader, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	log, err := os.Create(filepath.Join(t.TempDir(), "log")) // a pipe would stay open with the container
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, log, log
	if err := cmd.Run(); err != nil {
		b, _ := os.ReadFile(log.Name())
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, b)
	}
}

// container starts one in the group and returns where its runtime keeps it.
func container(t *testing.T, name string, g Group) string {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "rootfs/bin")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"user":{},"args":["/bin/busybox","sleep","1000"],"cwd":"/"},
		"mounts":[{"destination":"/proc","type":"proc","source":"proc"}],
		"linux":{"cgroupsPath":%q,"namespaces":[{"type":"pid"},{"type":"mount"},{"type":"network"}]}}`, g)
	for _, d := range []string{bin, filepath.Join(dir, "rootfs/proc"), filepath.Join(dir, "rootfs/dev"), filepath.Join(dir, "rootfs/sys")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for file, b := range map[string][]byte{filepath.Join(bin, "busybox"): program, filepath.Join(dir, "config.json"): []byte(config)} {
		if err := os.WriteFile(file, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(dir, "state")
	t.Cleanup(func() { runtime(t, context.Background(), name, nil, "--root", root, "delete", "--force", "c") })
	runtime(t, t.Context(), name, nil, "--root", root, "create", "--bundle", dir, "c")
	runtime(t, t.Context(), name, nil, "--root", root, "start", "c")
	return root
}

func TestARuntimeTakesTheUpdate(t *testing.T) {
	m := detect(t)
	runtimes := []string{"runc"}
	if m.Version == V2 {
		runtimes = append(runtimes, "crun")
	}
	for _, name := range runtimes {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Skipf("needs %s", name)
			}
			g := newGroup(t)
			if err := g.Remove(); err != nil { // the runtime makes it
				t.Fatal(err)
			}
			root := container(t, name, g)
			dev := loop(t)
			rate := []berth.Throttle{{Device: dev, Rate: mib}}
			for _, l := range []berth.Limits{
				{Memory: 64 * mib, NanoCPUs: 5e8, Pids: 50, CPUs: "0", DeviceReadBps: rate},
				{Memory: 256 * mib, NanoCPUs: 1e9, Pids: 20, CPUs: "0", DeviceWriteBps: rate},
				{Memory: 32 * mib, MemorySwap: 32 * mib, CPUQuota: 2000, CPUPeriod: 10000, MemoryReservation: 16 * mib},
				{Memory: 48 * mib, MemorySwap: -1, CPUShares: 512},
				{},
			} {
				b, err := UpdateJSON(l, m)
				if err != nil {
					t.Fatal(err)
				}
				runtime(t, t.Context(), name, bytes.NewReader(b), "--root", root, "update", "--resources", "-", "c")
				if err := g.Throttle(l); err != nil {
					t.Fatal(err)
				}
				holds(t, g, l)
			}
		})
	}
}

// holds compares what the kernel has with limits.
func holds(t *testing.T, g Group, l berth.Limits) {
	t.Helper()
	s := stats(t, g)
	host, _ := totalMemory()
	memory, swap, pids := host, int64(-1), int64(-1)
	if l.Memory != 0 {
		memory, swap = l.Memory, l.Memory
	}
	switch {
	case l.MemorySwap > 0:
		swap = l.MemorySwap - l.Memory
	case l.MemorySwap < 0:
		swap = -1
	}
	if l.Pids != 0 {
		pids = l.Pids
	}
	if s.Memory.Limit != memory || g.mode.Swap && s.Memory.Swap.Limit != swap || s.Pids.Limit != pids {
		t.Errorf("%+v: memory %+v, swap %+v, pids %+v", l, s.Memory, s.Memory.Swap, s.Pids)
	}
	quota, period := "-1", "100000"
	if l.NanoCPUs != 0 {
		quota = fmt.Sprint(l.NanoCPUs / 1e4)
	}
	if l.CPUQuota != 0 {
		quota, period = fmt.Sprint(l.CPUQuota), fmt.Sprint(l.CPUPeriod)
	}
	have, _ := read(g.dir("cpu"), "cpu.max")
	if g.mode.Version != V2 {
		q, _ := read(g.dir("cpu"), "cpu.cfs_quota_us")
		p, _ := read(g.dir("cpu"), "cpu.cfs_period_us")
		have = q + " " + p
	}
	if have = strings.Replace(have, "max", "-1", 1); have != quota+" "+period {
		t.Errorf("%+v: quota and period are %s", l, have)
	}
	var rates [2]string
	for i, th := range throttles(l) {
		rates[i], _ = read(g.dir("io"), byMode(g, th.v1, "io.max"))
		has := strings.Contains(rates[i], byMode(g, " ", th.v2+"=")+fmt.Sprint(mib))
		if has != (len(th.of) > 0) {
			t.Errorf("%+v: rates %q", l, rates[i])
		}
	}
}
