package kernel

import (
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"berth/internal/plan"
)

// Found looks at a link that others made in a sandbox, with its addresses, and
// for its other end on the host: hostEnd is empty if it is no pair, or leads
// elsewhere. It lists nothing of the host.
func (k *Kernel) Found(name plan.Place, dev string) (l LinkInfo, hostEnd string, there bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := k.session().place(name)
	if err != nil {
		return l, "", false, err
	}
	if l, err = p.link(dev); err != nil {
		return l, "", false, ignoreGone(err)
	}
	addrs, err := p.addrList()
	if err != nil {
		return l, "", false, err
	}
	for _, a := range addrs {
		if a.LinkIndex == l.Index {
			l.Addrs = append(l.Addrs, prefixOf(a.IPNet))
		}
	}
	if l.Kind != string(plan.VethLink) {
		return l, "", true, nil
	}
	// An index means nothing by itself: the pair may lead to a third namespace.
	far, err := k.host.linkAt(l.peerIndex)
	if err != nil || far.Kind != l.Kind || far.peerIndex != l.Index {
		return l, "", true, ignoreGone(err)
	}
	return l, far.Name, true, nil
}

// linkAt reads the link of an index.
func (p *place) linkAt(index int) (LinkInfo, error) {
	req := p.request(unix.RTM_GETLINK, 0)
	req.Flags &^= unix.NLM_F_ACK
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return LinkInfo{}, err
	}
	if len(msgs) != 1 {
		return LinkInfo{}, fmt.Errorf("%d answers for link %d", len(msgs), index)
	}
	return parseLink(msgs[0])
}
