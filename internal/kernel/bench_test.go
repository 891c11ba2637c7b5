package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"berth/internal/plan"
)

// BenchmarkConnect measures the rtnetlink half of an attach: a pair in its
// place, its address, up, and a default route. The median is in the metrics.
func BenchmarkConnect(b *testing.B) {
	w := newWorld(b, "c1")
	gateway := plan.AddrKey{Link: bridgeKey, Prefix: prefix("10.9.0.1/16")}
	if err := w.Apply(b.Context(), []plan.Step{putBridge(), plan.PutAddr{Key: gateway}}); err != nil {
		b.Fatal(err)
	}
	var times []time.Duration
	for i := 0; b.Loop(); i++ {
		out, in := plan.LinkKey{Name: fmt.Sprintf("bt%d", i)}, plan.LinkKey{Place: "c1", Name: "eth0"}
		steps := []plan.Step{
			putPair(out, in, fmt.Sprintf("berth:%d", i)),
			plan.PutAddr{Key: plan.AddrKey{Link: in, Prefix: netip.PrefixFrom(addr("10.9.0.2"), 16)}},
			plan.UpLink{Key: in},
			plan.PutRoute{Key: plan.RouteKey{Place: "c1", Table: plan.TableMain, Dst: prefix("0.0.0.0/0"), Dev: "eth0"}, Route: plan.Route{Gateway: addr("10.9.0.1")}},
		}
		start := time.Now()
		if err := w.Apply(b.Context(), steps); err != nil {
			b.Fatal(err)
		}
		w.Release()
		times = append(times, time.Since(start))
		b.StopTimer()
		if err := w.Apply(b.Context(), []plan.Step{plan.DropLinks{Names: []string{out.Name}}}); err != nil {
			b.Fatal(err)
		}
		w.Release()
		b.StartTimer()
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "µs/median")
}
