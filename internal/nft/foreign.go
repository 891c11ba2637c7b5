package nft

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"berth/internal/foreign"
)

var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet", nftables.TableFamilyBridge: "bridge",
}

// The numbers of hooks are the same for IP and bridges.
var hooks = map[nftables.ChainHook]foreign.Hook{
	unix.NF_INET_PRE_ROUTING: foreign.Prerouting, unix.NF_INET_LOCAL_IN: foreign.Input, unix.NF_INET_FORWARD: foreign.Forward,
	unix.NF_INET_LOCAL_OUT: foreign.Output, unix.NF_INET_POST_ROUTING: foreign.Postrouting,
}

// Foreign returns the tables of other tools with their chains, those of
// iptables-legacy among them. Rules are read only in tables that filter what is
// forwarded or comes to the host: others may hold tens of thousands.
func (c *Conn) Foreign() ([]foreign.Table, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return nil, err
	}
	var out []foreign.Table
	err := c.steady(func() (err error) {
		out, err = c.foreign()
		return err
	})
	if err != nil {
		c.giveUp()
		return nil, explain("read other tools' firewalls", err)
	}
	old, err := c.legacy()
	return append(out, old...), err
}

func (c *Conn) foreign() ([]foreign.Table, error) {
	all, err := c.nft.ListChains()
	if err != nil {
		return nil, err
	}
	byTable := map[nftables.Table][]*nftables.Chain{}
	var order []nftables.Table
	for _, ch := range all {
		t := nftables.Table{Family: ch.Table.Family, Name: ch.Table.Name}
		if _, known := families[t.Family]; !known || t == *table {
			continue
		}
		if byTable[t] == nil {
			order = append(order, t)
		}
		byTable[t] = append(byTable[t], ch)
	}
	var out []foreign.Table
	for _, t := range order {
		flags, ok, err := c.tableFlags(&t)
		if err != nil {
			return nil, err
		}
		if !ok || flags&unix.NFT_TABLE_F_DORMANT != 0 {
			continue
		}
		ft, err := c.foreignTable(&t, byTable[t])
		if err != nil {
			return nil, fmt.Errorf("table %s %s: %w", ft.Family, ft.Name, err)
		}
		out = append(out, ft)
	}
	return out, nil
}

func (c *Conn) foreignTable(t *nftables.Table, chains []*nftables.Chain) (foreign.Table, error) {
	ft := foreign.Table{Family: families[t.Family], Name: t.Name}
	filters := false
	for _, ch := range chains {
		fc := foreign.Chain{Name: ch.Name, Drop: ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop}
		if ch.Hooknum != nil && ch.Priority != nil {
			fc.Hook, fc.Type, fc.Priority = hooks[*ch.Hooknum], string(ch.Type), int(*ch.Priority)
		}
		filters = filters || fc.Type == "filter" && (fc.Hook == foreign.Forward || fc.Hook == foreign.Input)
		ft.Chains = append(ft.Chains, fc)
	}
	if !filters {
		return ft, nil
	}
	rules, err := c.kernelRules(t)
	if err != nil {
		return ft, err
	}
	sets, err := c.kernelSets(t)
	if err != nil {
		return ft, err
	}
	for i := range ft.Chains {
		ch := &ft.Chains[i]
		for _, r := range rules[ch.Name] {
			u := reader{family: t.Family, elements: func(name string) ([]setElement, bool) { return c.lookedUp(t, name, sets[name]) }, link: c.linkName}
			ch.Rules = append(ch.Rules, u.rules(r.exprs)...)
		}
	}
	return ft, nil
}

// A setElement is an element that a foreign rule looks up.
type setElement struct {
	key     []byte
	verdict []byte // of a verdict map: its attributes
}

// lookedUp reads a set of single values, or a verdict map of such, that does
// not change by itself.
func (c *Conn) lookedUp(t *nftables.Table, name string, s kernelSet) (out []setElement, ok bool) {
	const most = 1000
	if s.flags&(unix.NFT_SET_INTERVAL|unix.NFT_SET_TIMEOUT|unix.NFT_SET_EVAL|flagConcat|flagObject) != 0 || s.keyType>>nftables.SetConcatTypeBits != 0 {
		return nil, false
	}
	all, err := c.elements(&nftables.Set{Table: t, Name: name})
	if err != nil || len(all) > most {
		return nil, false
	}
	for _, e := range all {
		if len(e.Key) == 0 {
			return nil, false
		}
		out = append(out, setElement{e.Key, e.Val})
	}
	return out, true
}

// linkName is the name of a link of the namespace by its number.
func (c *Conn) linkName(index uint32) (name string, ok bool) {
	err := c.ns.Do(func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		req, err := unix.NewIfreq("x") // SIOCGIFNAME writes over it
		if err != nil {
			return err
		}
		req.SetUint32(index)
		err = unix.IoctlIfreq(s, unix.SIOCGIFNAME, req)
		name = req.Name()
		return err
	})
	return name, err == nil
}

// verdictOfElement reads the verdict of a verdict map's element.
func verdictOfElement(b []byte) (code int32, chain string) {
	// What cannot be read is the code 0, a drop: an unknown match stands beside.
	_ = attributes(b, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			code = int32(ad.Uint32())
		case unix.NFTA_VERDICT_CHAIN:
			chain = ad.String()
		}
	})
	return code, chain
}
