package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/plan"
)

// tune changes a link, whoever made it.
func (p *place) tune(step plan.TuneLink) error {
	index, err := p.indexOf(step.Key.Name)
	if err != nil {
		return err
	}
	req := p.change(index)
	msg := req.Data[0].(*nl.IfInfomsg)
	for _, f := range []struct {
		flag uint32
		on   *bool
	}{{unix.IFF_PROMISC, step.Promisc}, {unix.IFF_ALLMULTI, step.AllMulti}, {unix.IFF_UP, step.Up}} {
		if f.on == nil {
			continue
		}
		if msg.Change |= f.flag; *f.on {
			msg.Flags |= f.flag
		}
	}
	addMTU(req, step.MTU)
	addMAC(req, step.MAC)
	if step.TxQueue != nil {
		req.AddData(nl.NewRtAttr(unix.IFLA_TXQLEN, nl.Uint32Attr(uint32(*step.TxQueue))))
	}
	if step.Isolated != nil {
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
		info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil).AddRtAttr(brportIsolated, flag(*step.Isolated))
		req.AddData(info)
	}
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// putOthersRoute puts a route as somebody at the keyboard would.
func (p *place) putOthersRoute(k plan.RouteKey, v plan.Route) error {
	req, err := p.routeRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, k, v)
	if err == nil {
		req.Data[0].(*nl.RtMsg).Protocol = unix.RTPROT_BOOT
		_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("there is one: %w", berth.ErrExists)
	}
	return err
}

// RoutesOf returns the destinations and gateways of the routes of a place's
// main table, by whomever.
func (k *Kernel) RoutesOf(name plan.Place) (map[netip.Prefix][]netip.Addr, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := k.session().place(name)
	if err != nil {
		return nil, err
	}
	out := map[netip.Prefix][]netip.Addr{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := p.routeList(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			for _, way := range ways(r) {
				key, value := p.planRoute(way, family, nil)
				out[key.Dst] = append(out[key.Dst], value.Gateway)
			}
		}
	}
	return out, nil
}
