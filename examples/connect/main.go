// Command connect connects a network namespace to a network and publishes its
// web server, as a program that starts sandboxes would:
//
//	connect /run/netns/ns1
package main

import (
	"context"
	"fmt"
	"os"

	"berth"
	"berth/engine"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: connect NAMESPACE-PATH")
		os.Exit(2)
	}
	if err := connect(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "connect:", err)
		os.Exit(1)
	}
}

func connect(ctx context.Context, path string) error {
	e, err := engine.Open(ctx, engine.Options{})
	if err != nil {
		return err
	}
	defer e.Close()

	if _, err := e.CreateNetwork(ctx, engine.NetworkSpec{Name: "front"}); err != nil {
		return err
	}
	ep, err := e.Connect(ctx, "front", engine.NetNS(path), engine.ConnectOptions{})
	if err != nil {
		return err
	}
	specs, err := berth.ParsePortSpec("8888:80")
	if err != nil {
		return err
	}
	ports, err := e.Publish(ctx, engine.NetNS(path), specs, engine.PublishOptions{})
	if err != nil {
		return err
	}
	fmt.Printf("%s has %v; port %d of the host leads to %s\n", ep.Interface, ep.Addrs, ports[0].HostPort, ports[0].To)

	report, err := e.Check(ctx)
	if err == nil && !report.Clean() {
		err = berth.ErrDrifted
	}
	return err
}
