package plan

import (
	"net/netip"

	"berth"
)

// found adds what Berth has at the host end of an endpoint that others made.
func (s *State) found(a Attachment) {
	n, e := a.Network, a.Endpoint
	if e.Link == "" {
		return
	}
	s.shapes(LinkKey{Host, e.Link}, n, e)
	if n.Driver != berth.Link {
		return
	}
	var own []netip.Prefix
	for _, p := range e.Addrs {
		own = append(own, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
	}
	s.border(n, e.Link, own)
	s.loopbackWay(n, e.Link, a.Published)
}

// carryOnly keeps the host out of what a bridge without an address carries. No
// route of the host leads there, so the reverse path of what a sandbox sends to
// the host itself never does, and a strict rp_filter drops it (ip-sysctl.rst),
// whether it is for the host or to be routed. The firewall has no part in it:
// what br_netfilter shows of the bridge's frames would be dropped too. A
// foreign bridge is its owner's to close.
func (s *State) carryOnly(n berth.Network) {
	if !n.Owned {
		return
	}
	s.sysctl(Host, "net/ipv4/conf/"+n.Bridge+"/rp_filter", "1")
	s.sysctl(Host, "net/ipv4/conf/"+n.Bridge+"/arp_ignore", "8") // the host answers for none of its addresses
	s.sysctl(Host, "net/ipv4/conf/"+n.Bridge+"/accept_redirects", "0")
	s.sysctl(Host, "net/ipv6/conf/"+n.Bridge+"/disable_ipv6", "1")
}
