package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth"
	"berth/engine"
	"berth/internal/netns"
)

// kept holds every namespace until the end of the run. What is let go is taken
// apart by the kernel in the background, under the lock that the next
// measurement needs.
var kept []*netns.NS

// fresh makes a namespace.
func fresh() *netns.NS {
	type made struct {
		ns  *netns.NS
		err error
	}
	ch := make(chan made)
	var onSpare func()
	onSpare = func() {
		runtime.LockOSThread() // the thread ends with its goroutine
		if unix.Gettid() == unix.Getpid() {
			// The first thread does not end, and its namespace is shown as the
			// process's.
			defer runtime.UnlockOSThread()
			done := make(chan struct{})
			go func() { defer close(done); onSpare() }()
			<-done
			return
		}
		if err := os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET)); err != nil {
			ch <- made{nil, err}
			return
		}
		ns, err := netns.Current()
		ch <- made{ns, err}
	}
	go onSpare()
	m := <-ch
	check(m.err)
	kept = append(kept, m.ns)
	return m.ns
}

// several makes n namespaces.
func several(n int) (all []*netns.NS) {
	for range n {
		all = append(all, fresh())
	}
	return all
}

// settle waits until the machine is idle, or for a second: what was just made
// keeps the kernel busy for a while. Each new port of a bridge reports its
// multicast groups to all the others.
func settle() {
	const tick = 100 * time.Millisecond
	idle, all := ticks()
	for range time.Second / tick {
		time.Sleep(tick)
		i, a := ticks()
		if i-idle >= (a-all)*9/10 {
			return
		}
		idle, all = i, a
	}
}

// ticks are those that the processors were idle, and all.
func ticks() (idle, all int) {
	line, _, _ := strings.Cut(string(must(os.ReadFile("/proc/stat"))), "\n")
	for i, f := range strings.Fields(line)[1:] {
		n := must(strconv.Atoi(f))
		all += n
		if i == 3 {
			idle = n
		}
	}
	return idle, all
}

func pathOf(ns *netns.NS) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD()) }

func ref(ns *netns.NS) string { return engine.NetNS(pathOf(ns)) }

// try runs a command in a namespace and returns what it prints.
func try(ns *netns.NS, cmd *exec.Cmd) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	var out []byte
	err := ns.Do(func() (err error) { // a process starts in its parent thread's namespace
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s: %w: %s%s", strings.Join(cmd.Args, " "), err, out, stderr.String())
	}
	return string(out), err
}

// run is try, for what must not fail.
func run(ns *netns.NS, cmd *exec.Cmd) string { return must(try(ns, cmd)) }

func shell(ns *netns.NS, script string) { run(ns, exec.Command("sh", "-ec", script)) }

// A bed is a host with an engine and a network on it.
type bed struct {
	*engine.Engine
	host *netns.NS
	dir  string
}

func newBed() *bed {
	b := &bed{host: fresh()}
	b.dir = must(os.MkdirTemp("/run", "bed-"))
	b.Engine = must(engine.Open(ctx, engine.Options{Root: b.dir + "/root", Run: b.dir + "/run", NetNS: pathOf(b.host)}))
	b.create()
	return b
}

func (b *bed) create() {
	must(b.CreateNetwork(ctx, engine.NetworkSpec{Name: "front", IPv6: true}))
}

func (b *bed) connect(sb *netns.NS) { must(b.Connect(ctx, "front", ref(sb), engine.ConnectOptions{})) }

func (b *bed) disconnect(sbs ...*netns.NS) {
	var refs []string
	for _, sb := range sbs {
		refs = append(refs, ref(sb))
	}
	check(b.Disconnect(ctx, "front", refs, engine.DisconnectOptions{}))
}

func (b *bed) publish(sb *netns.NS, spec string) {
	must(b.Publish(ctx, ref(sb), must(berth.ParsePortSpec(spec)), engine.PublishOptions{}))
}

func (b *bed) unpublish(sb *netns.NS, spec string) {
	must(b.Unpublish(ctx, ref(sb), must(berth.ParsePortSpec(spec))))
}

// berth runs the program.
func (b *bed) berth(args ...string) {
	run(b.host, exec.Command(berthBin, append([]string{"--root", b.dir + "/root", "--run", b.dir + "/run"}, args...)...))
}

// address is the IPv4 address of a sandbox.
func (b *bed) address(sb *netns.NS) string {
	return must(b.InspectSandbox(ctx, ref(sb))).Endpoints[0].Addr4().String()
}

// lan wires an outside to a host, which is 192.0.2.1 to it.
func lan(host *netns.NS) *netns.NS {
	out := fresh()
	shell(host, "ip link set lo up; ip link add uplink type veth peer name lan0 netns "+pathOf(out)+"; ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up")
	shell(out, "ip link set lo up; ip addr add 192.0.2.2/24 dev lan0; ip link set lan0 up")
	return out
}
