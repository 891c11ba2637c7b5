package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth"
	"berth/engine"
	"berth/internal/netns"
)

var ctx = context.Background()

// kept holds every namespace: one whose file is collected ends, with its links.
var kept []*netns.NS

// fresh makes a namespace and keeps it open.
func fresh() *netns.NS {
	ch := make(chan *netns.NS)
	go func() {
		runtime.LockOSThread() // the thread ends with its goroutine
		check(unix.Unshare(unix.CLONE_NEWNET))
		ch <- must(netns.Current())
	}()
	ns := <-ch
	kept = append(kept, ns)
	return ns
}

func pathOf(ns *netns.NS) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD()) }

func ref(ns *netns.NS) string { return engine.NetNS(pathOf(ns)) }

// A bed is a host with an engine on it.
type bed struct {
	*engine.Engine
	host *netns.NS
	dir  string
}

func newBed() *bed {
	b := &bed{host: fresh()}
	b.dir = must(os.MkdirTemp("/run", "bed-"))
	b.Engine = must(engine.Open(ctx, engine.Options{Root: b.dir + "/root", Run: b.dir + "/run", NetNS: pathOf(b.host)}))
	must(b.CreateNetwork(ctx, engine.NetworkSpec{Name: "front", IPv6: true}))
	return b
}

func (b *bed) connect(sb *netns.NS) { must(b.Connect(ctx, "front", ref(sb), engine.ConnectOptions{})) }

func (b *bed) publish(sb *netns.NS, spec string) {
	must(b.Publish(ctx, ref(sb), must(berth.ParsePortSpec(spec)), engine.PublishOptions{}))
}

// attach compares Connect and Publish with the floor as endpoints grow.
func attach() []row {
	b, f := newBed(), newFloor(fresh())
	marks := []int{1, 100, 900}
	if *quick {
		marks = []int{1, 50, 100}
	}
	n := rounds(20)
	var rows []row
	var first, last sample
	count := 0
	one := func(ours, floor *sample) {
		s1, s2 := fresh(), fresh()
		ours.timed(func() {
			b.connect(s1)
			b.publish(s1, fmt.Sprintf("%d:80", 10000+count))
		})
		floor.timed(func() { f.attach(count, s2) })
		count++
	}
	for _, m := range marks {
		var skip, ours, floor sample
		for count < m-1 {
			one(&skip, &skip)
		}
		for range n {
			one(&ours, &floor)
		}
		if first == nil {
			first = ours
		}
		last = ours
		r := ours.median() / floor.median()
		rows = append(rows, compare(fmt.Sprintf("connect + publish in one process, from endpoint %d on / bare netlink", m), ours, floor, "≤ 2", r <= 2))
	}
	r := last.median() / first.median()
	rows = append(rows, compare(fmt.Sprintf("connect + publish at endpoint %d / at the first", marks[len(marks)-1]), last, first, "≤ 1.5", r <= 1.5))
	return rows
}

// berthIn runs the program on a host of its own.
func (b *bed) berthIn(args ...string) {
	cmd := exec.Command("nsenter", append([]string{"--net=" + pathOf(b.host), *berthBin, "--root", b.dir + "/root", "--run", b.dir + "/run"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("berth %s: %v: %s", strings.Join(args, " "), err, out))
	}
}

// detach compares Disconnect with the deletion of one veth, one by one and in
// bulk.
func detach() []row {
	b, f := newBed(), newFloor(fresh())
	var ours, floor sample
	for i := range rounds(20) {
		s1, s2 := fresh(), fresh()
		b.connect(s1)
		f.attach(i, s2)
		ours.timed(func() { check(b.Disconnect(ctx, "front", []string{ref(s1)}, engine.DisconnectOptions{})) })
		floor.timed(func() { f.detach(i) })
		check(s1.Close())
		check(s2.Close())
	}
	rows := []row{compare("disconnect / deletion of one veth", ours, floor, "≤ 1.2", ours.median()/floor.median() <= 1.2)}
	var bulk, rm sample
	for range rounds(5) {
		for _, how := range []string{"disconnect", "rm"} {
			var refs []string
			var all []*netns.NS
			for range 100 {
				s := fresh()
				all, refs = append(all, s), append(refs, ref(s))
				b.connect(s)
			}
			start := time.Now()
			if how == "rm" {
				check(b.RemoveNetwork(ctx, "front", engine.RemoveOptions{Force: true}))
				rm.add(time.Since(start) / 100)
				must(b.CreateNetwork(ctx, engine.NetworkSpec{Name: "front", IPv6: true}))
			} else {
				check(b.Disconnect(ctx, "front", refs, engine.DisconnectOptions{}))
				bulk.add(time.Since(start) / 100)
			}
			for _, s := range all {
				check(s.Close())
			}
		}
	}
	return append(rows,
		row{"disconnect of 100, each", bulk.ms(), "", "", "≤ 2 ms", yes(bulk.median() <= 2)},
		row{"network rm --force with 100, each", rm.ms(), "", "", "≤ 2 ms", yes(rm.median() <= 2)})
}

// manyPorts measures publishing as ports grow.
func manyPorts() []row {
	b := newBed()
	sb := fresh()
	b.connect(sb)
	unpublish := func(spec string) { must(b.Unpublish(ctx, ref(sb), must(berth.ParsePortSpec(spec)))) }
	var first, later, bulk sample
	n := rounds(30)
	for range n {
		first.timed(func() { b.publish(sb, "9:80/udp") })
		unpublish("9:80/udp")
	}
	for range rounds(5) {
		bulk.timed(func() { b.publish(sb, "20000-29999:20000-29999") })
		unpublish("20000-29999:20000-29999")
	}
	b.publish(sb, "20000-29999:20000-29999")
	for range n {
		later.timed(func() { b.publish(sb, "9:80/udp") })
		unpublish("9:80/udp")
	}
	return []row{
		compare("the 10,001st publish / the first", later, first, "≤ 1.5", later.median()/first.median() <= 1.5),
		compare("10,000 ports in one publish / one port", bulk, first, "≤ 100", bulk.median()/first.median() <= 100),
	}
}

func mustSpecs(s string) []berth.PortSpec { return must(berth.ParsePortSpec(s)) }
