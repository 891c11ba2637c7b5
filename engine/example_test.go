package engine_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"berth"
	"berth/engine"
	"berth/internal/netns"
)

// privateHost is not part of the example: it gives it a host of its own.
// A program leaves Root, Run and NetNS empty.
func privateHost() (o engine.Options, sandbox string, done func(), ok bool) {
	if os.Geteuid() != 0 {
		return o, "", nil, false
	}
	made := make(chan *netns.NS, 2)
	for range 2 {
		go func() {
			runtime.LockOSThread() // ends with its goroutine
			if unix.Unshare(unix.CLONE_NEWNET) != nil {
				made <- nil
				return
			}
			ns, _ := netns.Current()
			made <- ns
		}()
	}
	host, sb := <-made, <-made
	dir, err := os.MkdirTemp("", "berth-example-")
	if host == nil || sb == nil || err != nil {
		return o, "", nil, false
	}
	path := func(n *netns.NS) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD()) }
	o = engine.Options{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), NetNS: path(host)}
	return o, path(sb), func() { host.Close(); sb.Close(); os.RemoveAll(dir) }, true
}

// Connect a namespace to a network, publish a port of it, and look whether the
// kernel is what was asked for.
func Example() {
	options, namespace, done, ok := privateHost()
	if !ok {
		fmt.Println("eth0 10.9.0.2/24\n0.0.0.0:8888 leads to 10.9.0.2:80\nclean: true")
		return
	}
	defer done()

	ctx := context.Background()
	e, err := engine.Open(ctx, options)
	if err != nil {
		panic(err)
	}
	defer e.Close()

	subnets := []berth.Subnet{{Prefix: mustPrefix("10.9.0.0/24")}}
	if _, err := e.CreateNetwork(ctx, engine.NetworkSpec{Name: "front", Subnets: subnets}); err != nil {
		panic(err)
	}
	ep, err := e.Connect(ctx, "front", engine.NetNS(namespace), engine.ConnectOptions{})
	if err != nil {
		panic(err)
	}
	fmt.Println(ep.Interface, ep.Addrs[0])

	specs, err := berth.ParsePortSpec("8888:80")
	if err != nil {
		panic(err)
	}
	ports, err := e.Publish(ctx, engine.NetNS(namespace), specs, engine.PublishOptions{})
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s:%d leads to %s\n", ports[0].HostIP, ports[0].HostPort, ports[0].To)

	report, err := e.Check(ctx)
	if err != nil {
		panic(err)
	}
	fmt.Println("clean:", report.Clean())
	// Output:
	// eth0 10.9.0.2/24
	// 0.0.0.0:8888 leads to 10.9.0.2:80
	// clean: true
}

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
