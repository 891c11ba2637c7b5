package script

import (
	"net/netip"
	"strconv"
	"strings"

	"berth"
	"berth/internal/plan"
)

func (w *writer) putLink(x plan.PutLink) {
	if x.Link.Kind == plan.BridgeLink {
		w.why = "the bridge, with a fixed address: else it takes the lowest of its ports"
		w.ipOr(x.Key.Place, "link add", x.Key.Name, "type", "bridge")
		w.shape(x.Key, x.Link)
		w.up(x.Key, x.Link)
		return
	}
	if x.Link.Kind == plan.Turnstile {
		w.why = "where what leaves the sandbox waits: a queue stands only where packets leave a link"
		w.ipOr(x.Key.Place, "link add", x.Key.Name, "type", "ifb")
		w.shape(x.Key, x.Link)
		return
	}
	if x.Inside == (plan.Link{}) {
		w.why = "one end of a pair that stands, back in shape"
		if x.Link.Master == "" {
			w.ip(x.Key.Place, "link set dev", x.Key.Name, "nomaster")
		}
		w.shape(x.Key, x.Link)
		w.up(x.Key, x.Link)
		return
	}
	w.why = "a pair of interfaces, made where its ends belong"
	here, there := x.Key, x.Link.Peer
	hereLink, thereLink := x.Link, x.Inside
	if there.Place == plan.Host {
		// A pair is made from the host: "netns" has no word for it.
		here, there, hereLink, thereLink = there, here, thereLink, hereLink
	}
	args := []string{here.Name, "type", "veth", "peer", "name", there.Name}
	if there.Place != here.Place {
		args = append(args, "netns", w.Name(there.Place))
	}
	w.ipOr(here.Place, "link add", args...)
	w.shape(there, thereLink)
	w.shape(here, hereLink)
	w.up(x.Key, x.Link)
}

// shape sets everything of a link but up. Nothing of it is said at the link's
// making, since the link may have been there.
func (w *writer) shape(k plan.LinkKey, l plan.Link) {
	args := []string{k.Name}
	if l.MTU != 0 {
		args = append(args, "mtu", strconv.Itoa(l.MTU))
	}
	if l.MAC != (berth.MAC{}) {
		args = append(args, "address", l.MAC.String())
	}
	args = append(args, "alias", l.Alias)
	if l.Kind == plan.BridgeLink {
		args = append(args, "promisc", onOff(l.Promisc))
	}
	if l.Master != "" {
		args = append(args, "master", l.Master)
	}
	if l.NoLinkLocal {
		args = append(args, "addrgenmode", "none")
	}
	w.ip(k.Place, "link set dev", args...)
	if l.Master != "" {
		w.add(w.inside(k.Place), "bridge link set dev", quote(k.Name), "hairpin", onOff(l.Hairpin), "isolated", onOff(l.Isolated))
	}
}

func (w *writer) up(k plan.LinkKey, l plan.Link) {
	if l.Up {
		w.ip(k.Place, "link set dev", k.Name, "up")
	}
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func (w *writer) putAddr(x plan.PutAddr) {
	k := x.Key
	if x.Bare {
		w.ownRoutes(k)
		return
	}
	args := []string{k.Prefix.String(), "dev", k.Link.Name}
	if k.Prefix.Addr().Is6() {
		args = append(args, "nodad")
	}
	w.ip(k.Link.Place, "addr replace", args...)
}

// ownRoutes puts the routes that came with an address.
func (w *writer) ownRoutes(k plan.AddrKey) {
	w.why = "the routes that came with the address"
	subnet, addr := k.Prefix.Masked().String(), k.Prefix.Addr().String()
	if k.Prefix.Addr().Is6() {
		w.ipOr(k.Link.Place, "-6 route append", subnet, "dev", k.Link.Name, "proto", "kernel", "metric", "256")
		return
	}
	w.ipOr(k.Link.Place, "route append local", addr, "dev", k.Link.Name, "table", "local", "proto", "kernel", "scope", "host", "src", addr)
	if !k.Prefix.IsSingleIP() {
		w.ipOr(k.Link.Place, "route append", subnet, "dev", k.Link.Name, "proto", "kernel", "scope", "link", "src", addr)
	}
}

// family opens a command of ip(8) that cannot tell the family by itself.
func family(a netip.Addr) string {
	if a.Is6() {
		return "-6 "
	}
	return ""
}

func route(k plan.RouteKey, r plan.Route) (args []string) {
	if r.Local {
		args = append(args, "local")
	}
	if k.Dst.Bits() == 0 {
		args = append(args, "default")
	} else {
		args = append(args, k.Dst.String())
	}
	if r.Gateway.IsValid() {
		args = append(args, "via", r.Gateway.String())
	}
	args = append(args, "dev", k.Dev, "table", table(k.Table), "proto", strconv.Itoa(plan.Protocol))
	if r.Src.IsValid() {
		args = append(args, "src", r.Src.String())
	}
	if k.Metric != 0 {
		args = append(args, "metric", strconv.Itoa(k.Metric))
	}
	return args
}

func rule(k plan.RuleKey) []string {
	return []string{
		"from", k.From.String(), "lookup", table(k.Table),
		"priority", strconv.Itoa(k.Priority), "protocol", strconv.Itoa(plan.Protocol),
	}
}

func table(n int) string {
	switch n {
	case plan.TableMain:
		return "main"
	case plan.TableLocal:
		return "local"
	}
	return strconv.Itoa(n)
}

func whyRoute(x plan.PutRoute) string {
	switch {
	case x.Route.Local:
		return "::1 may speak on this interface: the host's own way to a published port"
	case x.Key.Table != plan.TableMain:
		return "the way back of one source address"
	case x.Key.Dst.Bits() == 0:
		return "the way out"
	}
	return "where an address is found"
}

// whySysctl tells what a setting is for.
func whySysctl(x plan.SetSysctl) string {
	name := x.Key.Path[strings.LastIndexByte(x.Key.Path, '/')+1:]
	off := x.Value == "0"
	switch {
	case x.Key.Path == plan.Forward4, x.Key.Path == plan.Forward6:
		if off {
			return "the host routes no more, as before Berth"
		}
		return "the host routes between its networks"
	case name == "forwarding":
		return "a sandbox does not route between its networks"
	case name == "accept_ra" && x.Value == "2":
		return "an uplink believes its router although the host routes"
	case name == "accept_dad":
		return "link-local addresses serve at once, without duplicate address detection"
	case name == "accept_ra":
		return "no neighbour can announce itself as a router"
	case name == "rp_filter", name == "arp_ignore":
		return "the host has no part in what the bridge carries"
	case name == "accept_redirects":
		return "no neighbour can bend a route"
	case name == "disable_ipv6" && off:
		return "the interface speaks IPv6"
	case name == "disable_ipv6":
		return "no IPv6 where the network has none"
	case name == "route_localnet" && off:
		return "127.0.0.1 stays on the host"
	case name == "route_localnet":
		return "a published port answers on 127.0.0.1"
	}
	return "a kernel setting"
}

func (w *writer) tune(x plan.TuneLink) {
	args := []string{x.Key.Name}
	for _, f := range []struct {
		word string
		on   *bool
	}{{"promisc", x.Promisc}, {"allmulticast", x.AllMulti}} {
		switch {
		case f.on != nil && *f.on:
			args = append(args, f.word, "on")
		case f.on != nil:
			args = append(args, f.word, "off")
		}
	}
	if x.MTU != 0 {
		args = append(args, "mtu", strconv.Itoa(x.MTU))
	}
	if x.MAC != (berth.MAC{}) {
		args = append(args, "address", x.MAC.String())
	}
	if x.TxQueue != nil {
		args = append(args, "txqueuelen", strconv.Itoa(*x.TxQueue))
	}
	if x.Up != nil && *x.Up {
		args = append(args, "up")
	} else if x.Up != nil {
		args = append(args, "down")
	}
	w.ip(x.Key.Place, "link set dev", args...)
	if x.Isolated != nil {
		on := "off"
		if *x.Isolated {
			on = "on"
		}
		w.ip(x.Key.Place, "link set dev", x.Key.Name, "type", "bridge_slave", "isolated", on)
	}
}
