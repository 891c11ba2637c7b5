package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestLimitsHold runs a container into each of its limits, changes them while it
// runs and tries again; then nothing of it is left.
func TestLimitsHold(t *testing.T) {
	t.Parallel()
	d := newDock(t)
	// The shell reaps, so that what has ended counts no more.
	run := "berth run -d --name web --network front -p 8888:80 -m 64m --memory-swap 64m --pids-limit 20 --cpus 0.2"
	disk := loopDevice(t)
	if disk != "" {
		run += " --device " + disk + " --device-write-bps " + disk + ":1m"
	}
	d.must(t, run+" --rootfs $R sh -c 'sleep 1000; true'")
	inside := namespacesOf(t, d.first(t, "web"))
	d.cpuHolds(t)
	d.memoryHolds(t)
	d.pidsHold(t)
	d.diskHolds(t, disk)

	d.must(t, "berth rm -f web && berth network rm front")
	if after := d.must(t, everything); after != d.before {
		t.Errorf("left behind: %q\ngone: %q", beside(after, d.before), beside(d.before, after))
	}
	eventually(t, "processes are left", func() bool { return len(d.processes()) == 0 })
	links, _ := filepath.Glob("/proc/[0-9]*/ns/*")
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil && slices.Contains(inside, ns) {
			t.Errorf("%s is left: %s", ns, link)
		}
	}
}

// namespacesOf are those of a process that this one is not in. They are held, so
// that no new one gets the number of one that has ended.
func namespacesOf(t *testing.T, pid int) (own []string) {
	t.Helper()
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		path := fmt.Sprintf("/proc/%d/ns/%s", pid, kind)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		ns, _ := os.Readlink(path)
		if here, err := os.Readlink("/proc/self/ns/" + kind); err != nil || ns != here {
			own = append(own, ns)
		}
	}
	return own
}

// loopDevice returns a disk of 16 MiB, or "" where there are none.
func loopDevice(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = exec.Command("modprobe", "loop").Run()
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	disk := strings.TrimSpace(string(out))
	if err != nil {
		t.Logf("the disk is not measured: %v: %s", err, disk)
		return ""
	}
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", disk).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return disk
}

func (d *dock) memoryHolds(t *testing.T) {
	t.Helper()
	const take = "berth exec web dd if=/dev/zero of=/dev/null bs=96M count=1"
	d.answer(t, 137, take)
	d.must(t, "berth update -m 192m --memory-swap 192m web && "+take)
	d.says(t, states, "web running")
}

func (d *dock) pidsHold(t *testing.T) {
	t.Helper()
	const (
		fork  = `berth exec web sh -c 'for i in $(seq 40); do tail -f /dev/null >/dev/null 2>&1 & done'`
		count = "berth stats --no-stream --format '{{.PIDs}}' web"
		end   = "berth exec web killall tail; test $(" + count + ") -lt 5"
	)
	if out := d.answer(t, 2, fork); !strings.Contains(out, "can't fork") {
		t.Errorf("a fork too many: %s", out)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(d.must(t, count))); err != nil || n > 20 || n < 15 {
		t.Errorf("%d processes of 20: %v", n, err)
	}
	d.await(t, end)
	d.must(t, "berth update --pids-limit 100 web && "+fork)
	if n, err := strconv.Atoi(strings.TrimSpace(d.must(t, count))); err != nil || n < 40 {
		t.Errorf("%d processes: %v", n, err)
	}
	d.await(t, end)
}

// used is the processor time that a container has had.
func (d *dock) used(t *testing.T) time.Duration {
	t.Helper()
	out := d.must(t, `id=$(berth inspect -f '{{.Id}}' web); cd /sys/fs/cgroup
cat cpuacct/berth/$id/cpuacct.usage 2>/dev/null || sed -n 's/^usage_usec \(.*\)/\1000/p' berth/$id/cpu.stat`)
	n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(n)
}

func (d *dock) cpuHolds(t *testing.T) {
	t.Helper()
	// A machine that is busy has to leave it what it may have: most weight.
	for _, g := range d.groups {
		for file, weight := range map[string]string{"/cpu.shares": "262144", "/cpu.weight": "10000"} {
			if _, err := os.Stat(g + file); err == nil {
				os.WriteFile(g+file, []byte(weight), 0) // best effort: it only helps
			}
		}
	}
	share := func() float64 {
		before, begin := d.used(t), time.Now()
		d.answer(t, 143, "berth exec web timeout 1 sh -c 'while :; do :; done'")
		return (d.used(t) - before).Seconds() / time.Since(begin).Seconds()
	}
	// It may be less: others want the processors too.
	if s := share(); s > 0.3 {
		t.Errorf("%.2f of a processor, and 0.2 was the limit", s)
	}
	d.must(t, "berth update --cpus 0.6 web")
	most := 0.0
	eventually(t, "with --cpus 0.6 it has no more than with 0.2", func() bool {
		s := share()
		most = max(most, s)
		return s > 0.3
	})
	if most > 0.75 {
		t.Errorf("%.2f of a processor, and 0.6 was the limit", most)
	}
}

func (d *dock) diskHolds(t *testing.T, disk string) {
	t.Helper()
	// A weight holds where a scheduler knows one, and is refused elsewhere.
	if out, err := d.sh("berth update --blkio-weight 100 web"); err != nil && !strings.Contains(out, "--blkio-weight: no disk's scheduler has weights") {
		t.Errorf("a weight: %s", out)
	}
	if disk == "" {
		return
	}
	write := func() time.Duration {
		begin := time.Now()
		d.must(t, "berth exec web dd if=/dev/zero of="+disk+" bs=64k count=24 conv=fsync")
		return time.Since(begin)
	}
	if spent := write(); spent < time.Second {
		t.Errorf("1.5 MiB at 1 MiB/s in %v", spent)
	}
	for _, rate := range []string{"100m", "0"} {
		d.must(t, "berth update --device-write-bps "+disk+":"+rate+" web")
		eventually(t, "a rate of "+rate+" is no faster", func() bool { return write() < time.Second })
	}
	d.says(t, "berth inspect -f '{{.HostConfig.BlkioDeviceWriteBps}}' web", "[]")
}
