package plan_test

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"berth"
	"berth/internal/plan"
)

// model is a kernel in memory: it does steps to a State. It is what the laws
// are checked against, with no root and no kernel.
type model struct {
	plan.State
	limits map[plan.LinkKey]berth.Rates // of inside ends, whose both states have some
}

func newModel(s plan.State) *model {
	m := &model{State: plan.State{
		Links: map[plan.LinkKey]plan.Link{}, Addrs: map[plan.AddrKey]plan.Addr{}, Routes: map[plan.RouteKey]plan.Route{},
		Rules: map[plan.RuleKey]struct{}{}, Sysctls: map[plan.SysctlKey]string{}, Elems: map[plan.ElemKey]plan.Elem{},
		Shapes: map[plan.LinkKey]plan.Shape{},
	}}
	m.Add(s)
	return m
}

func (m *model) do(t *rapid.T, s plan.Step) {
	switch s := s.(type) {
	case plan.Transaction:
		m.transaction(t, s)
	case plan.PutLink:
		if old, ok := m.Links[s.Key]; ok && (old.Kind != s.Link.Kind || old.Peer != s.Link.Peer) {
			m.dropLink(s.Key)
		}
		if old, ok := m.Links[s.Link.Peer]; ok && s.Link.Kind == plan.VethLink && old.Peer != s.Key {
			m.dropLink(s.Link.Peer)
		}
		m.Links[s.Key] = s.Link
		if in := s.Inside; in.Kind == plan.VethLink {
			in.Up = false
			m.Links[s.Link.Peer] = in
		}
	case plan.UpLink:
		l, ok := m.Links[s.Key]
		if s.Key.Name == "lo" {
			l, ok = plan.Link{Kind: plan.Loopback}, true
		}
		if !ok {
			t.Fatalf("brings up %v, which is not there", s.Key)
		}
		l.Up = true
		m.Links[s.Key] = l
	case plan.DropLinks:
		for _, n := range s.Names {
			m.dropLink(plan.LinkKey{Place: s.Place, Name: n})
		}
	case plan.PutShape:
		if _, ok := m.Links[s.Key]; !ok && !strings.HasPrefix(s.Key.Name, "veth") { // others'
			t.Fatalf("shapes %v, which is not there", s.Key)
		}
		if m.Shapes[s.Key] = s.Shape; s.Shape == (plan.Shape{}) {
			delete(m.Shapes, s.Key)
		}
	case plan.PutAddr:
		if _, ok := m.Links[s.Key.Link]; !ok {
			t.Fatalf("puts %v on a link that is not there", s.Key)
		}
		m.Addrs[s.Key] = plan.Addr{}
	case plan.DropAddr:
		delete(m.Addrs, s.Key)
	case plan.PutRoute:
		if l, ok := m.Links[plan.LinkKey{Place: s.Key.Place, Name: s.Key.Dev}]; (!ok || !l.Up) && !strings.HasPrefix(s.Key.Dev, "veth") {
			t.Fatalf("routes by %s, which is not up", s.Key.Dev)
		}
		m.Routes[s.Key] = s.Route
	case plan.DropRoute:
		delete(m.Routes, s.Key)
	case plan.PutRule:
		m.Rules[s.Key] = struct{}{}
	case plan.DropRule:
		delete(m.Rules, s.Key)
	case plan.SetSysctl:
		m.Sysctls[s.Key] = s.Value
	case plan.FlushConntrack:
	default:
		t.Fatalf("unknown step %T", s)
	}
	for k, v := range m.Shapes {
		if to := m.Links[plan.LinkKey{Place: k.Place, Name: v.Divert}]; v.Divert != "" && !(to.Kind == plan.Turnstile && to.Up) {
			t.Fatalf("after %T what comes in by %s is lost", s, k.Name)
		}
	}
	for k, l := range m.Links {
		// Inside ends come up when all is ready.
		want, limited := m.limits[k]
		if limited && l.Up && !m.held(l.Peer, want) {
			t.Fatalf("after %T %v is up and not held back", s, k)
		}
	}
}

// held reports whether a host end holds back what is limited.
func (m *model) held(k plan.LinkKey, r berth.Rates) bool {
	s := m.Shapes[k]
	return (s.Rate > 0 || r.In.Bits == 0) && (r.Out.Bits == 0 || m.Shapes[plan.LinkKey{Place: k.Place, Name: s.Divert}].Rate > 0)
}

func (m *model) transaction(t *rapid.T, s plan.Transaction) {
	if s.Remove || s.Rebuild {
		m.Table, m.Elems = s.Rebuild, map[plan.ElemKey]plan.Elem{}
	}
	for _, e := range s.Drop {
		if _, ok := m.Elems[e.ElemKey]; !ok {
			t.Fatalf("drops element %v, which is not there", e.ElemKey)
		}
		delete(m.Elems, e.ElemKey)
	}
	for _, e := range s.Put {
		if old, ok := m.Elems[e.ElemKey]; ok && old != e.Elem {
			t.Fatalf("puts %v over %v", e, old)
		}
		m.Elems[e.ElemKey] = e.Elem
	}
}

// dropLink takes along what hangs on a link, as the kernel does.
func (m *model) dropLink(k plan.LinkKey) {
	l, ok := m.Links[k]
	if !ok {
		return
	}
	delete(m.Links, k)
	delete(m.Shapes, k)
	maps.DeleteFunc(m.Addrs, func(a plan.AddrKey, _ plan.Addr) bool { return a.Link == k })
	maps.DeleteFunc(m.Routes, func(r plan.RouteKey, _ plan.Route) bool { return r.Place == k.Place && r.Dev == k.Name })
	maps.DeleteFunc(m.Sysctls, func(s plan.SysctlKey, _ string) bool {
		return s.Place == k.Place && strings.Contains(s.Path, "/"+k.Name+"/")
	})
	if l.Kind == plan.VethLink {
		m.dropLink(l.Peer)
	}
}

// host draws a random host: what a store may hold.
type host struct {
	networks  []berth.Network
	endpoints []berth.Endpoint
	ports     []berth.Port
}

func drawHost(t *rapid.T) host {
	var h host
	for i := range rapid.IntRange(0, 3).Draw(t, "networks") {
		n := berth.Network{
			ID: fmt.Sprintf("%064x", i+1), Name: fmt.Sprintf("n%d", i), Driver: berth.Bridge, HostEnd: true, MTU: 1500,
			Owned: true, Bridge: fmt.Sprintf("bt-n%d", i), Masquerade: rapid.Bool().Draw(t, "masq"),
			Internal: rapid.Bool().Draw(t, "internal"), Isolated: rapid.Bool().Draw(t, "isolated"), HostDeny: rapid.Bool().Draw(t, "deny"),
			NoDefaultRoute: rapid.Bool().Draw(t, "noDefault"), NoHairpin: rapid.Bool().Draw(t, "noHairpin"), Promisc: rapid.Bool().Draw(t, "promisc"),
			NoAddress: rapid.IntRange(0, 4).Draw(t, "noAddress") == 0,
			Subnets:   []berth.Subnet{{Prefix: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", i)), Gateway: netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", i))}},
		}
		if rapid.Bool().Draw(t, "v6") {
			n.Subnets = append(n.Subnets, berth.Subnet{Prefix: netip.MustParsePrefix(fmt.Sprintf("fd00:%d::/64", i)), Gateway: netip.MustParseAddr(fmt.Sprintf("fd00:%d::1", i))})
		}
		if rapid.IntRange(0, 3).Draw(t, "link") == 0 {
			n.Driver, n.Bridge, n.Owned, n.NoAddress = berth.Link, "", false, false
			n.HostEnd = rapid.Bool().Draw(t, "hostEnd")
		}
		n.Open = !n.Internal && n.Routed() && rapid.Bool().Draw(t, "open")
		h.networks = append(h.networks, n)
	}
	for i, n := range h.networks {
		room := 4
		if n.Driver == berth.Link {
			if room = 1; !n.HostEnd {
				room = 2
			}
		}
		for j := range rapid.IntRange(0, room).Draw(t, "endpoints") {
			e := berth.Endpoint{
				ID: fmt.Sprintf("%02x%02x%060x", i+1, j+1, 0), Network: n.ID, Sandbox: fmt.Sprintf("s%d", j),
				Interface: fmt.Sprintf("eth%d", i), Slot: i, GwPriority: rapid.IntRange(0, 1).Draw(t, "priority"), MAC: berth.MAC{2, 0, 0, 0, byte(i), byte(j)},
			}
			if n.HostEnd {
				e.Rates = berth.Rates{In: drawRate(t), Out: drawRate(t)}
				if e.Found = n.HostEnd && rapid.IntRange(0, 3).Draw(t, "found") == 0; e.Found {
					e.Link = fmt.Sprintf("veth%d%d", i, j)
				}
			}
			for _, s := range n.Subnets {
				a := s.Prefix.Addr().AsSlice()
				a[len(a)-1] = byte(j + 2)
				addr, _ := netip.AddrFromSlice(a)
				e.Addrs = append(e.Addrs, netip.PrefixFrom(addr, s.Prefix.Bits()))
			}
			h.endpoints = append(h.endpoints, e)
			if n.Routed() && !n.Internal && rapid.Bool().Draw(t, "port") {
				h.ports = append(h.ports, berth.Port{
					PortKey: berth.PortKey{Protocol: berth.TCP, HostIP: netip.IPv4Unspecified(), HostPort: uint16(8000 + 10*i + j)},
					Sandbox: e.Sandbox, Network: n.ID, Interface: e.Interface, To: netip.AddrPortFrom(e.Addr4(), 80),
				})
			}
		}
	}
	return h
}

func drawRate(t *rapid.T) berth.Rate {
	return rapid.SampledFrom([]berth.Rate{{}, {}, {Bits: 1e6}, {Bits: 5e9, Burst: 8 << 20}}).Draw(t, "rate")
}

// limits are the rates of inside ends.
func (h host) limits() map[plan.LinkKey]berth.Rates {
	out := map[plan.LinkKey]berth.Rates{}
	for _, e := range h.endpoints {
		out[plan.LinkKey{Place: plan.Place(e.Sandbox), Name: e.Interface}] = e.Rates
	}
	return out
}

// parts are the summands of a host, the base first.
func (h host) parts() []plan.State {
	if len(h.networks) == 0 {
		return nil
	}
	v6 := false
	for _, n := range h.networks {
		v6 = v6 || n.Has6()
	}
	parts := []plan.State{plan.Base(true, v6, plan.Uplinks{V4: []string{"eth0"}, V6: []string{"eth0"}, AcceptRA: []string{"eth0"}})}
	published := map[string]bool{}
	for _, p := range h.ports {
		published[p.Network] = true
	}
	nets := map[string]berth.Network{}
	for _, n := range h.networks {
		nets[n.ID] = n
		parts = append(parts, plan.Network(n, published[n.ID]))
	}
	of := map[string][]plan.Attachment{}
	for _, e := range h.endpoints {
		a := plan.Attachment{Endpoint: e, Network: nets[e.Network], Published: published[e.Network]}
		for _, o := range h.endpoints {
			if o.Network == e.Network && o.ID != e.ID && !nets[e.Network].HostEnd {
				a.Other = &o
			}
		}
		of[e.Sandbox] = append(of[e.Sandbox], a)
	}
	for _, s := range []string{"s0", "s1", "s2", "s3"} {
		parts = append(parts, plan.Sandbox(s, of[s]))
	}
	for _, p := range h.ports {
		parts = append(parts, plan.Ports(p.Sandbox, p))
	}
	return parts
}

// TestStepsReachWhatIsWanted: from any host to any other, the steps of the
// difference end at the plan, and doing them twice changes nothing more.
func TestStepsReachWhatIsWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, after := drawHost(t), drawHost(t)
		have, want := plan.Sum(before.parts()...), plan.Sum(after.parts()...)
		m := newModel(have)
		m.limits = both(before.limits(), after.limits())
		for _, s := range plan.Steps(plan.Diff(have, want)) {
			m.do(t, s)
		}
		// A model kernel does not make sysctls up; those of links that stay
		// keep their values, and nobody reads what is not wanted.
		maps.DeleteFunc(m.Sysctls, func(k plan.SysctlKey, _ string) bool { _, ok := want.Sysctls[k]; return !ok })
		maps.DeleteFunc(m.Links, func(k plan.LinkKey, l plan.Link) bool {
			_, ok := want.Links[k]
			return l.Kind == plan.Loopback && !ok
		})
		if d := cmp.Diff(want, m.State, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); d != "" {
			t.Fatalf("the steps did not lead there (-want +got):\n%s", d)
		}
	})
}

// both are the limits that hold in two hosts.
func both(a, b map[plan.LinkKey]berth.Rates) map[plan.LinkKey]berth.Rates {
	out := map[plan.LinkKey]berth.Rates{}
	for k, r := range b {
		old, was := a[k]
		if !was {
			old = r
		}
		if old.In.Bits == 0 {
			r.In = berth.Rate{}
		}
		if old.Out.Bits == 0 {
			r.Out = berth.Rate{}
		}
		out[k] = r
	}
	return out
}

// openness is what a state lets through: every grant that the guards of its
// network do not take back.
func openness(s plan.State) map[string]bool {
	open := map[string]bool{}
	if !s.Table {
		// Without the table nothing is closed: only what forwards matters.
		for k, v := range s.Sysctls {
			if strings.HasSuffix(k.Path, "/route_localnet") && v == "1" || k.Path == plan.Forward4 && v == "1" && len(s.Links) > 0 {
				open["no table: "+k.Path] = true
			}
		}
		return open
	}
	for k, e := range s.Elems {
		switch k.Set {
		case "within", "open", "publish4", "publish6", "publish_any4", "publish_any6":
			open[k.Set+" "+k.Key+" "+e.Value] = true
		}
	}
	for k, l := range s.Links {
		if k.Place == plan.Host && l.Up && l.Kind == plan.BridgeLink {
			for _, guard := range []string{"bridges"} {
				if _, ok := s.Elems[plan.ElemKey{Set: guard, Key: k.Name}]; !ok {
					open["unguarded "+k.Name] = true
				}
			}
		}
	}
	for k, v := range s.Sysctls {
		if strings.HasSuffix(k.Path, "/route_localnet") && v == "1" {
			open[k.Path] = true
		}
	}
	return open
}

// TestStepsCutAnywhereOpenNothing: whatever step is the last, no more is open
// than before or after.
func TestStepsCutAnywhereOpenNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := plan.Sum(drawHost(t).parts()...), plan.Sum(drawHost(t).parts()...)
		allowed := openness(have)
		maps.Copy(allowed, openness(want))
		m := newModel(have)
		for i, s := range plan.Steps(plan.Diff(have, want)) {
			m.do(t, s)
			for o := range openness(m.State) {
				if !allowed[o] {
					t.Fatalf("cut after step %d (%T), this is open: %s", i, s, o)
				}
			}
		}
	})
}

// TestPlanIsASum: parts of one host never contradict each other, so their
// order does not matter.
func TestPlanIsASum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := drawHost(t).parts()
		var back []plan.State
		for i := range parts {
			back = append(back, parts[len(parts)-1-i])
		}
		if d := plan.Diff(plan.Sum(parts...), plan.Sum(back...)); !d.Empty() {
			t.Fatalf("parts contradict each other: %+v", d)
		}
	})
}

func TestDiffOfEqualStatesIsEmpty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := plan.Sum(drawHost(t).parts()...)
		if d := plan.Diff(s, s); !d.Empty() {
			t.Fatalf("not empty: %+v", d)
		}
	})
}
