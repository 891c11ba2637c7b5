package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"berth"
	"berth/internal/cgroup"
	"berth/internal/container"
	"berth/internal/netns"
	"berth/internal/oci"
)

// containers compares whole containers: with the monitor and the runtime alone,
// and with themselves as they get many.
func containers() []row {
	return boxes(func(root string, runtime oci.Runtime, _ cgroup.Mode) []row {
		return append(foreground(root, runtime), crowd(root)...)
	})
}

// beside compares whole containers with Podman's.
func beside() []row { return boxes(background) }

// boxes measures containers, where they can be run.
func boxes(measure func(root string, runtime oci.Runtime, mode cgroup.Mode) []row) []row {
	mode := must(cgroup.Detect())
	runtime, err := oci.FindRuntime("", "/run/bare/runtime", mode.Version == cgroup.V2)
	if err == nil {
		_, err = oci.FindMonitor()
	}
	if err != nil {
		return []row{{what: "containers", note: "not measured: " + err.Error()}}
	}
	return measure(rootfs(), runtime, mode)
}

// rootfs is a root file system with one static program.
func rootfs() string {
	dir := "/run/rootfs"
	if _, err := os.Stat(dir); err == nil {
		return dir // of a part before
	}
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		check(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	f, err := os.Open(must(exec.LookPath("busybox")))
	check(err)
	check(unpack(f, dir+"/bin/busybox"))
	for _, name := range []string{"true", "sleep"} {
		check(os.Symlink("busybox", dir+"/bin/"+name))
	}
	return dir
}

// newContainers is a bed with a container on the default network, so that
// neither the network's first need nor its last is measured.
func newContainers(root string) *bed {
	b := &bed{host: fresh()}
	b.dir = must(os.MkdirTemp("/run", "bed-"))
	shell(b.host, "ip link set lo up")
	b.start("standing", root, 20000)
	return b
}

// named is a container's name: what is in /run/netns is of all beds.
func (b *bed) named(name string) string { return name + strings.TrimPrefix(b.dir, "/run/bed") }

// remove removes containers that run.
func (b *bed) remove(names ...string) {
	for i := range names {
		names[i] = b.named(names[i])
	}
	b.berth(append([]string{"rm", "-f"}, names...)...)
}

// start runs a container in the background; port 0 is one without any network.
func (b *bed) start(name, root string, port int) {
	name = b.named(name)
	args := []string{"run", "-d", "--name", name, "--rootfs", root, "--network", "none", "sleep", "1000000"}
	if port != 0 {
		args = []string{"run", "-d", "--name", name, "--rootfs", root, "-p", fmt.Sprintf("%d:80", port), "sleep", "1000000"}
	}
	b.berth(args...)
}

// rest lets the kernel finish what was removed before: to take a network
// namespace apart takes it 100 ms and more, and the next one that is made waits.
func rest() { time.Sleep(250 * time.Millisecond) }

// foreground is a container from its beginning to its end.
func foreground(root string, runtime oci.Runtime) []row {
	b := newContainers(root)
	bare := newBare(b, root, runtime)
	var none, floor, wired, more sample
	for i := range rounds(30) {
		turn(i, func() {
			none.timed(func() { b.berth("run", "--rm", "--network", "none", "--rootfs", root, "true") })
			rest()
			wired.timed(func() { b.berth("run", "--rm", "-p", "20001:80", "--rootfs", root, "true") })
			rest()
		}, func() { floor.timed(func() { bare.run(i) }) })
		rest()
		more.add(wired[i] - none[i])
	}
	name := runtime.Name()
	out := []row{
		{what: "run --rm --network none true / bare conmon and " + name + ": create, start, wait, delete", ours: none, reference: floor, unit: " ms", want: atMost(1.2)},
		{what: "what the default network and a published port add to it, removal too", ours: more, unit: " ms", want: itselfMost(5)},
	}
	var without, with, start, rm sample
	for i := range rounds(20) {
		var end [2]sample
		turn(i, func() {
			without.timed(func() { b.start("a", root, 0) })
			end[0].timed(func() { b.remove("a") })
			rest()
		}, func() {
			with.timed(func() { b.start("b", root, 20001) })
			end[1].timed(func() { b.remove("b") })
			rest()
		})
		start.add(with[i] - without[i])
		rm.add(end[1][0] - end[0][0])
	}
	b.remove("standing", "model")
	return append(out,
		row{what: "what they add to run -d", ours: start, unit: " ms", want: itselfMost(5)},
		row{what: "what they add to rm -f", ours: rm, unit: " ms"})
}

// A podman is Debian's Podman on a host of its own.
type podman struct {
	host *netns.NS
	args []string
	root string
}

func newPodman(root, runtime string) *podman {
	dir := must(os.MkdirTemp("/run", "podman-"))
	p := &podman{host: fresh(), root: root, args: []string{
		"--root", dir + "/root", "--runroot", dir + "/run", "--tmpdir", dir + "/tmp", "--network-config-dir", dir + "/networks",
		"--runtime", runtime, "--cgroup-manager", "cgroupfs", "--events-backend", "file",
	}}
	shell(p.host, "ip link set lo up")
	p.start("standing", 20000)
	return p
}

func (p *podman) do(args ...string) { run(p.host, exec.Command("podman", append(p.args, args...)...)) }

func (p *podman) start(name string, port int) {
	// Its default limits may be above those that it is started with.
	p.do("run", "-d", "--name", name, "--log-driver", "k8s-file", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
		"-p", fmt.Sprintf("%d:80", port), "--rootfs", p.root, "sleep", "1000000")
}

// background compares with Podman.
func background(root string, runtime oci.Runtime, mode cgroup.Mode) []row {
	start, stop := "run -d with the default network and a port / Debian's podman with "+runtime.Name(), "rm -f / podman rm -f -t 0"
	if _, err := exec.LookPath("podman"); err != nil {
		note := "not installed (podman)"
		return []row{{what: start, note: note}, {what: stop, note: note}}
	}
	b, p := newContainers(root), newPodman(root, runtime.Name())
	var up, down [2]sample
	for i := range rounds(15) {
		turn(i, func() {
			up[0].timed(func() { b.start("a", root, 20001) })
		}, func() { up[1].timed(func() { p.start("a", 20001) }) })
		turn(i, func() {
			down[0].timed(func() { b.remove("a") })
		}, func() { down[1].timed(func() { p.do("rm", "-f", "-t", "0", "a") }) })
		rest()
	}
	b.remove("standing")
	p.do("rm", "-f", "-t", "0", "standing")
	most := atMost(0.285) // 3.5 times faster
	if mode.Version == cgroup.V2 {
		most = atMost(0.25)
	}
	return []row{
		{what: start, ours: up[0], reference: up[1], unit: " ms", want: most},
		{what: stop, ours: down[0], reference: down[1], unit: " ms", want: atMost(0.2)},
	}
}

// crowd is what many containers cost, and how the next one is started then.
func crowd(root string) []row {
	full, counted, listed, span := 500, 100, 1000, 10
	if *quick {
		full, counted, listed, span = 20, 20, 100, 4
	}
	b := newContainers(root)
	few := newContainers(root)
	var early, late sample
	var memory, resident float64
	for i := 1; i < full; i++ { // the one that stands is the first
		name := fmt.Sprint("c", i)
		switch start := func() { b.start(name, root, 20000+i) }; {
		case i <= span:
			early.timed(start)
		case i >= full-span:
			late.timed(start)
		default:
			start()
		}
		if i+1 == counted {
			memory, resident = standing()
		}
	}
	b.record(listed - full)
	for i := range 4 {
		few.start(fmt.Sprint("c", i), root, 20001+i)
	}
	few.record(5)
	var many, ten sample
	for i := range rounds(20) {
		turn(i, func() { many.timed(func() { b.berth("ps", "-a") }) }, func() { ten.timed(func() { few.berth("ps", "-a") }) })
	}
	few.clear()
	b.clear()
	limit := limit{}
	if counted == 100 {
		limit = itselfMost(62.3)
	}
	return []row{
		{what: fmt.Sprintf("memory beside the containers' own processes, %d containers with a port each (PSS; Docker: 748 MB at 100)", counted), ours: sample{memory}, unit: " MB", want: limit},
		{what: "processes of Berth's that stay for them", ours: sample{resident}, want: itselfMost(0)},
		{what: fmt.Sprintf("start of the last %d of %d containers with a port each / of the first %d", span, full, span), ours: late, reference: early, unit: " ms", want: atMost(1.3)},
		{what: fmt.Sprintf("ps -a with %d containers, %d of them running / with 10, 5 of them running", listed, full), ours: many, reference: ten, unit: " ms", want: atMost(10)},
	}
}

// standing is the memory, in MB, of all processes but the benchmark's and the
// containers' own, and how many of them run the berth program.
func standing() (mb, resident float64) {
	own, program := must(os.Stat("/proc/self/ns/pid")), must(os.Stat(berthBin))
	var pids []int
	for _, dir := range must(filepath.Glob("/proc/[0-9]*")) {
		var pid int
		fmt.Sscan(filepath.Base(dir), &pid)
		at, err := os.Stat(dir + "/ns/pid")
		if err != nil || !os.SameFile(own, at) || pid == 1 || pid == os.Getpid() {
			continue
		}
		pids = append(pids, pid)
		if exe, err := os.Stat(dir + "/exe"); err == nil && os.SameFile(exe, program) {
			resident++
		}
	}
	return math.Round(float64(must(cgroup.PSS(pids)))/(1<<20)*10) / 10, resident
}

// record makes containers that are not started.
func (b *bed) record(n int) {
	check(b.host.Do(func() error {
		s, err := container.Open(container.Options{Root: b.dir + "/root", Run: b.dir + "/run"})
		if err != nil {
			return err
		}
		defer s.Close()
		for range n {
			c := berth.Container{Rootfs: "/run/rootfs", Process: berth.Process{Command: []string{"true"}}, Net: berth.Net{Mode: "none"}}
			if _, err := s.Create(ctx, c); err != nil {
				return err
			}
		}
		return nil
	}))
}

// clear removes all containers.
func (b *bed) clear() {
	ids := strings.Fields(run(b.host, exec.Command(berthBin, "--root", b.dir+"/root", "--run", b.dir+"/run", "ps", "-aq")))
	b.berth(append([]string{"rm", "-f"}, ids...)...)
}
