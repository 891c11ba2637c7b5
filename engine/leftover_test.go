package engine_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"berth"
	"berth/engine"
)

func (w *world) sysctl(name string) string {
	w.t.Helper()
	return strings.TrimSpace(w.host.Run(w.t, "sysctl", "-n", name))
}

// TestUplinkGoes: an uplink whose advertisements Berth kept alive goes, and the
// host can be read, changed and mended without it.
func TestUplinkGoes(t *testing.T) {
	w := newWorld(t)
	w.host.Run(t, "sh", "-c", "ip link add up1 type veth peer name lan1 && ip link set up1 up && sysctl -qw net.ipv6.conf.up1.accept_ra=1 net.ipv6.conf.all.forwarding=0")
	w.network(engine.NetworkSpec{Name: "front", IPv6: true})
	if got := w.sysctl("net.ipv6.conf.up1.accept_ra"); got != "2" {
		t.Fatalf("control: accept_ra is %s, want 2", got)
	}
	w.host.Run(t, "ip", "link", "del", "up1")
	w.clean()
	w.host.Run(t, "nft", "flush", "ruleset")
	if _, err := w.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.clean()
	if err := w.RemoveNetwork(t.Context(), "front", engine.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestForwardingStaysWithRA: where a bridge of another tool keeps forwarding
// on, the uplinks go on believing advertisements.
func TestForwardingStaysWithRA(t *testing.T) {
	w := newWorld(t)
	w.host.Run(t, "sh", "-c", "ip link add up1 type veth peer name lan1 && ip link set up1 up && sysctl -qw net.ipv6.conf.up1.accept_ra=1 net.ipv6.conf.all.forwarding=0")
	w.network(engine.NetworkSpec{Name: "front", IPv6: true})
	w.host.Run(t, "ip", "link", "add", "br9", "type", "bridge")
	if err := w.RemoveNetwork(t.Context(), "front", engine.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if fwd, ra := w.sysctl("net.ipv6.conf.all.forwarding"), w.sysctl("net.ipv6.conf.up1.accept_ra"); fwd != "1" || ra != "2" {
		t.Errorf("forwarding is %s and accept_ra %s, want 1 and 2", fwd, ra)
	}
}

// TestForeignBridgeIsNoStranger: a bridge that was there before forwarding was
// switched on has a way out while it is a network, and not after.
func TestForeignBridgeIsNoStranger(t *testing.T) {
	w := newWorld(t)
	w.host.Run(t, "sh", "-c", "sysctl -qw net.ipv4.ip_forward=0; ip link add br0 type bridge && ip addr add 10.5.0.1/24 dev br0 && ip link set br0 up")
	stranger := func() bool {
		return strings.Contains(w.host.Run(t, "nft", "list", "set", "inet", "berth", "uplinks"), `"br0"`)
	}
	w.network(engine.NetworkSpec{Name: "front"})
	if !stranger() {
		t.Error("the bridge was there before forwarding and is routed")
	}
	w.network(engine.NetworkSpec{Name: "lan", Options: map[string]string{"bridge": "br0"}})
	if stranger() {
		t.Error("a network is kept from its way out")
	}
	w.clean()
	if err := w.RemoveNetwork(t.Context(), "lan", engine.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if !stranger() {
		t.Error("the bridge is no network any more and is routed")
	}
	w.clean()
}

// TestLastGoesAsFirstComes: the table that one engine makes is not the one
// that the other removes.
func TestLastGoesAsFirstComes(t *testing.T) {
	w := newWorld(t)
	other := w.open()
	for range 10 {
		w.network(engine.NetworkSpec{Name: "old"})
		gone := make(chan error)
		go func() { gone <- other.RemoveNetwork(context.Background(), "old", engine.RemoveOptions{}) }()
		w.network(engine.NetworkSpec{Name: "new"})
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		w.clean()
		if err := w.RemoveNetwork(t.Context(), "new", engine.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRangesGoOn: a port of a range that belongs to another sandbox, or to
// another port of the same call, is passed over.
func TestRangesGoOn(t *testing.T) {
	w := newWorld(t)
	w.network(engine.NetworkSpec{Name: "front"})
	a, _ := w.netns()
	b, _ := w.netns()
	w.connect("front", a, engine.ConnectOptions{})
	w.connect("front", b, engine.ConnectOptions{})
	w.publish(a, "9000:80", "9001:81")
	spec, _ := berth.ParsePortSpec("9000-9003:80")
	ports, err := w.Publish(t.Context(), b, spec, engine.PublishOptions{Replace: true})
	if err != nil || len(ports) != 1 || ports[0].HostPort != 9002 {
		t.Errorf("the next free port is %v (%v), want 9002", ports, err)
	}
	w.host.Run(t, "sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40003")
	w.publish(b, ":1", ":2", ":3", ":4")
	both, _ := berth.ParsePortSpec("127.0.0.1:82:80")
	any, _ := berth.ParsePortSpec("82:81")
	if _, err := w.Publish(t.Context(), b, append(both, any...), engine.PublishOptions{}); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("one port for two targets: %v, want invalid", err)
	}
	w.clean()
}
