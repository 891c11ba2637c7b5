package engine

import (
	"fmt"
	"slices"
	"strings"

	"berth"
	"berth/internal/plan"
)

// report turns a Delta into lines a person reads.
func (e *Engine) report(w world, d plan.Delta) Report {
	var r Report
	t := teller{w: w, d: d, r: &r}
	t.table()
	tell(t, d.Put.Links, d.Drop.Links, func(k plan.LinkKey) string { return "link " + k.Name + t.in(k.Place) })
	tell(t, d.Put.Addrs, d.Drop.Addrs, func(k plan.AddrKey) string {
		return fmt.Sprintf("address %s on %s%s", k.Prefix, k.Link.Name, t.in(k.Link.Place))
	})
	tell(t, d.Put.Routes, d.Drop.Routes, func(k plan.RouteKey) string {
		return fmt.Sprintf("route %s dev %s table %d%s", k.Dst, k.Dev, k.Table, t.in(k.Place))
	})
	tell(t, d.Put.Rules, d.Drop.Rules, func(k plan.RuleKey) string {
		return fmt.Sprintf("rule from %s lookup %d%s", k.From, k.Table, t.in(k.Place))
	})
	tell(t, d.Put.Sysctls, d.Drop.Sysctls, func(k plan.SysctlKey) string { return "sysctl " + k.Path + t.in(k.Place) })
	tell(t, d.Put.Elems, d.Drop.Elems, func(k plan.ElemKey) string { return fmt.Sprintf("nft %s { %s }", k.Set, k.Key) })
	tell(t, d.Put.Shapes, d.Drop.Shapes, func(k plan.LinkKey) string { return "limit of link " + k.Name + t.in(k.Place) })
	for id, sb := range w.sandboxes {
		if !alive(sb) {
			r.Dead = append(r.Dead, fmt.Sprintf("sandbox %s: its namespace is gone (%s)", name(w, id), sb.Path))
		}
	}
	for _, l := range [][]string{r.Missing, r.Extra, r.Changed, r.Dead} {
		slices.Sort(l)
	}
	return r
}

type teller struct {
	w world
	d plan.Delta
	r *Report
}

func (t teller) table() {
	switch {
	case t.d.Put.Table:
		t.r.Missing = append(t.r.Missing, "nft table inet berth with its rules")
	case t.d.Drop.Table:
		t.r.Extra = append(t.r.Extra, "nft table inet berth")
	}
}

func (t teller) in(p plan.Place) string {
	if p == plan.Host {
		return ""
	}
	return " in sandbox " + name(t.w, string(p))
}

func tell[K comparable, V any](t teller, put, drop map[K]V, line func(K) string) {
	for k, v := range put {
		switch old, was := drop[k]; {
		case was:
			t.r.Changed = append(t.r.Changed, line(k)+difference(old, v))
		default:
			t.r.Missing = append(t.r.Missing, line(k))
		}
	}
	for k := range drop {
		if _, again := put[k]; !again {
			t.r.Extra = append(t.r.Extra, line(k))
		}
	}
}

// difference says what an object is and what it should be, where that is
// short: links tell which of their fields differ.
func difference(have, want any) string {
	h, w := any(have), any(want)
	if hl, ok := h.(plan.Link); ok {
		wl := w.(plan.Link)
		var out []string
		field := func(name string, is, should any) {
			if is != should {
				out = append(out, fmt.Sprintf("%s is %v, should be %v", name, is, should))
			}
		}
		field("kind", hl.Kind, wl.Kind)
		field("alias", hl.Alias, wl.Alias)
		field("mtu", hl.MTU, wl.MTU)
		field("mac", hl.MAC, wl.MAC)
		field("up", hl.Up, wl.Up)
		field("promisc", hl.Promisc, wl.Promisc)
		field("peer", hl.Peer.Name, wl.Peer.Name)
		field("master", hl.Master, wl.Master)
		field("hairpin", hl.Hairpin, wl.Hairpin)
		field("isolated", hl.Isolated, wl.Isolated)
		field("link-local addresses", !hl.NoLinkLocal, !wl.NoLinkLocal)
		return ": " + strings.Join(out, ", ")
	}
	if hs, ok := h.(plan.Shape); ok {
		return ": is " + shapeText(hs) + ", should be " + shapeText(w.(plan.Shape))
	}
	if ha, ok := h.(plan.Addr); ok && ha.Bare {
		return ": a route that came with it is gone"
	}
	if he, ok := h.(plan.Elem); ok && he.Value == w.(plan.Elem).Value {
		return ": comment differs"
	}
	return fmt.Sprintf(": is %v, should be %v", h, w)
}

// shapeText says how a link holds back.
func shapeText(s plan.Shape) string {
	text := "none"
	if s.Rate > 0 {
		text = fmt.Sprintf("%s, burst %d bytes, queue %d bytes", berth.FormatRate(8*s.Rate), s.Burst, s.Queue)
	}
	if s.Divert != "" {
		text += ", the other way by " + s.Divert
	}
	return text
}

// name is what a person calls a sandbox.
func name(w world, id string) string {
	if sb, ok := w.sandboxes[id]; ok {
		return sb.Name
	}
	return short(id)
}
