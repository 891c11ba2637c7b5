package script

import (
	"fmt"

	"berth/internal/plan"
)

// putShape writes how a link is held back, in the words of tc(8).
func (w *writer) putShape(x plan.PutShape) {
	w.why = "what goes by this link waits for its turn"
	if x.Shape == (plan.Shape{}) {
		w.why = "no limit any more"
	}
	if x.Shape.Divert != x.Was.Divert {
		if x.Was.Divert != "" {
			// Best effort: a filter of somebody else's keeps it standing.
			w.tc(x.Key, "filter del dev", "ingress pref 9800 || true")
			w.tc(x.Key, "qdisc del dev", "ingress || true")
		}
		if x.Shape.Divert != "" {
			w.tc(x.Key, "qdisc add dev", "ingress || true")
			w.tc(x.Key, "filter del dev", "ingress pref 9800 2>/dev/null || true")
			w.tc(x.Key, "filter add dev", "ingress protocol all pref 9800 u32 match u32 0 0 action mirred egress redirect dev "+quote(x.Shape.Divert))
		}
	}
	switch {
	case x.Shape.Rate > 0:
		w.tc(x.Key, "qdisc replace dev", fmt.Sprintf("root handle 6274: tbf rate %dbit burst %d limit %d", 8*x.Shape.Rate, x.Shape.Burst, x.Shape.Queue))
	case x.Was.Rate > 0:
		w.tc(x.Key, "qdisc del dev", "root handle 6274: || true")
	}
}

// tc adds a line of tc(8) about a link.
func (w *writer) tc(k plan.LinkKey, command, rest string) {
	w.add(w.inside(k.Place), "tc", command, quote(k.Name), rest)
}
