package engine_test

import (
	"fmt"
	"testing"

	"berth"
	"berth/engine"
	"berth/internal/nettest"
)

// BenchmarkConnectPublish connects and publishes b.N sandboxes on one network.
func BenchmarkConnectPublish(b *testing.B) {
	host := nettest.NewHost(b)
	e, err := engine.Open(b.Context(), engine.Options{Root: b.TempDir(), Run: b.TempDir(), NetNS: fmt.Sprintf("/proc/%d/ns/net", host.Pid())})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	if _, err := e.CreateNetwork(b.Context(), engine.NetworkSpec{Name: "front", IPv6: true}); err != nil {
		b.Fatal(err)
	}
	refs := make([]string, b.N)
	for i := range refs {
		refs[i] = engine.NetNS(fmt.Sprintf("/proc/%d/ns/net", nettest.NewHost(b).Pid()))
	}
	b.ResetTimer()
	for i := range b.N {
		if _, err := e.Connect(b.Context(), "front", refs[i], engine.ConnectOptions{}); err != nil {
			b.Fatal(err)
		}
		specs := []berth.PortSpec{{Protocol: berth.TCP, HostLow: uint16(10000 + i), HostHigh: uint16(10000 + i), Port: 80}}
		if _, err := e.Publish(b.Context(), refs[i], specs, engine.PublishOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPublish10000 publishes ten thousand ports in one call.
func BenchmarkPublish10000(b *testing.B) {
	host := nettest.NewHost(b)
	e, err := engine.Open(b.Context(), engine.Options{Root: b.TempDir(), Run: b.TempDir(), NetNS: fmt.Sprintf("/proc/%d/ns/net", host.Pid())})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	if _, err := e.CreateNetwork(b.Context(), engine.NetworkSpec{Name: "front", IPv6: true}); err != nil {
		b.Fatal(err)
	}
	sb := engine.NetNS(fmt.Sprintf("/proc/%d/ns/net", nettest.NewHost(b).Pid()))
	if _, err := e.Connect(b.Context(), "front", sb, engine.ConnectOptions{}); err != nil {
		b.Fatal(err)
	}
	specs, err := berth.ParsePortSpec("20000-29999:20000-29999")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := e.Publish(b.Context(), sb, specs, engine.PublishOptions{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if _, err := e.Unpublish(b.Context(), sb, nil); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
