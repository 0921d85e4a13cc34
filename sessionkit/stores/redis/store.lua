-- What the server does for a RedisStore. Each call is one step: no other comes in between.
--
-- KEYS[1]  the base of a partition's keys, with its hash tag: all other keys begin with it, and so are in its slot:
--   :s:<id>    a hash, one session: "m" the record but its data, "d" the data, "@<instance>" for each instance that has it
--   :due       a sorted set, ids by the instant at which they expire
--   :ids       a sorted set, ids in their order
--   :instances    a hash, from instances to "until|term|lag|name": until when each is alive; lag may be "left"
--   :heard     when the last heartbeat of any instance came
--   :longest   the longest session timeout so far
--   :layout    the version of all this
--   :r:<token> what a call gave, in case its answer is lost and the call is sent again
-- KEYS[2]  a hash, from names to ids, if it is in that slot too; in a cluster, names need calls of their own
-- ARGV     the operation, its token ("" if it may simply be repeated), for how many ms its result is kept, and its own
--
-- Every key expires by itself: with each write of a session, its keys get its session timeout and a day to live.

local base, NAMES, operation, token, result_ms = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local DUE, IDS, INSTANCES = base .. ':due', base .. ':ids', base .. ':instances'
local LONGEST, LAYOUT, HEARD = base .. ':longest', base .. ':layout', base .. ':heard'
local RESULT = base .. ':r:' .. token
local DAY_MS, HOUR_MS = 86400000, 3600000
local MOST_MS = 1e14
local WALK = 500
local FIRST = 4

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6

local function number(text)
  if text == 'inf' then return math.huge end
  if text == '-inf' then return -math.huge end
  return tonumber(text)
end

-- ---- Instances, and which of them are alive

local function instance_of(text)
  local until_, term, lag, name = string.match(text, '^(.-)|(.-)|(.-)|(.*)$')
  return {until_ = number(until_), term = number(term), lag = lag, name = name}
end

-- One at a time, which costs the same however many instances there are.
local known = {}

local function known_instance(id)
  if known[id] == nil then
    local text = redis.call('HGET', INSTANCES, id)
    known[id] = text and instance_of(text) or false
  end
  return known[id] or nil
end

local function all_instances()
  local found, flat = {}, redis.call('HGETALL', INSTANCES)
  for i = 1, #flat, 2 do found[flat[i]] = instance_of(flat[i + 1]) end
  return found
end

local function write_instance(id, until_, term, lag, name)
  -- Out of memory, a server refuses what adds to a hash, unless something else was written before.
  redis.call('HDEL', INSTANCES, id)
  redis.call('HSET', INSTANCES, id, table.concat({string.format('%.6f', until_), term, lag, name}, '|'))
end

-- For how long no instance was heard of, if that is so long that none can have been: each sends three heartbeats in a
-- term. It is the server that was away then, or all instances were, and that time is not to count against any.
local function silence(term)
  local seconds = now - number(redis.call('GET', HEARD) or tostring(now))
  return seconds > term / 2 and seconds or 0
end

-- Until an instance is heard of again, the silence counts for ten terms at most: one that died may have been the last.
local function is_alive(id)
  local instance = known_instance(id)
  if not instance or instance.lag == 'left' then return false end
  if now <= instance.until_ then return true end
  return now <= instance.until_ + math.min(silence(instance.term), 10 * instance.term)
end

-- Which argument is the instance that is to have a session.
local HOLDERS = {create = 4, attach = 2, rename = 3, seize = 2, adopt = 4}

-- Whether a heartbeat of the instance has to come before it gets anything: others may take it for dead, and the server
-- may have come back without it.
local function is_lapsed(id)
  local instance = known_instance(id)
  return not instance or (now > instance.until_ and instance.lag ~= 'left')
end

-- Gives whether the term before had not run out.
local function begin_term(id, term, lag, name)
  local before = known_instance(id)
  if silence(0) > 0 then
    for other_id, other in pairs(all_instances()) do
      local seconds = silence(other.term)
      if seconds > 0 and other.lag ~= 'left' then
        write_instance(other_id, other.until_ + seconds, other.term, other.lag, other.name)
      end
    end
  end
  write_instance(id, now + number(term), term, lag, name)
  redis.call('SET', HEARD, string.format('%.6f', now), 'PX', DAY_MS)
  redis.call('PEXPIRE', INSTANCES, DAY_MS)
  return before and now <= before.until_
end

-- ---- Sessions

local function key_of(id) return base .. ':s:' .. id end

-- name | state | created_at | last_active | message_count | session_timeout | max_lifetime | version | token of its last save
local function parsed(id, meta)
  local name, state, created, last, count, timeout, lifetime, version, saver =
    string.match(meta, '^(.-)|(.-)|(.-)|(.-)|(.-)|(.-)|(.-)|(.-)|(.*)$')
  return {
    id = id, key = key_of(id), name = name, state = state, created = created, last = last, count = number(count),
    timeout = timeout, lifetime = lifetime, version = number(version), saver = saver
  }
end

local function meta_of(s)
  return table.concat({
    s.name, s.state, s.created, s.last, string.format('%.0f', s.count), s.timeout, s.lifetime,
    string.format('%.0f', s.version), s.saver
  }, '|')
end

local function peek(id)
  local meta = redis.call('HGET', key_of(id), 'm')
  return meta and parsed(id, meta)
end

local function session(id)
  local flat = redis.call('HGETALL', key_of(id))
  local fields, holders = {}, {}
  for i = 1, #flat, 2 do
    if string.sub(flat[i], 1, 1) == '@' then
      holders[string.sub(flat[i], 2)] = flat[i + 1]
    else
      fields[flat[i]] = flat[i + 1]
    end
  end
  if not fields.m then return nil end
  local s = parsed(id, fields.m)
  s.data, s.holders = fields.d, holders
  return s
end

local function life_end(s)
  return s.lifetime == '' and math.huge or number(s.created) + number(s.lifetime)
end

local function keep(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, string.format('%.0f', ms)) end
end

local function keep_indexes(ms)
  for _, key in ipairs({DUE, IDS, LONGEST, LAYOUT, NAMES}) do keep(key, ms) end
end

local function keep_with_indexes(s)
  local ms = math.min(math.ceil(number(s.timeout) * 1000), MOST_MS) + DAY_MS
  redis.call('PEXPIRE', s.key, string.format('%.0f', ms))
  -- An hour more, so that not every session that is written makes it longer.
  if redis.call('PTTL', DUE) < ms then keep_indexes(ms + HOUR_MS) end
end

local wrote = false

local function write(s)
  wrote = true
  -- Out of memory, a server refuses what it thinks to be longer, unless something else was written before.
  redis.call('HDEL', s.key, '')
  redis.call('HSET', s.key, 'm', meta_of(s))
  redis.call('ZADD', DUE, math.min(number(s.last) + number(s.timeout), life_end(s)), s.id)
  keep_with_indexes(s)
end

local function note_longest(timeout)
  local longest = number(redis.call('GET', LONGEST) or '0')
  if number(timeout) > longest then redis.call('SET', LONGEST, timeout, 'KEEPTTL') end
end

local function insert(s, data)
  redis.call('HSET', s.key, 'd', data)
  redis.call('ZADD', IDS, 0, s.id)
  if NAMES and s.name ~= '' then redis.call('HSETNX', NAMES, s.name, s.id) end
  note_longest(s.timeout)
  write(s)
end

local function forget(id)
  redis.call('ZREM', DUE, id)
  redis.call('ZREM', IDS, id)
end

local function remove(s)
  wrote = true
  redis.call('DEL', s.key)
  forget(s.id)
  if NAMES and s.name ~= '' and redis.call('HGET', NAMES, s.name) == s.id then redis.call('HDEL', NAMES, s.name) end
end

-- timeout: a new session timeout, or ""
local function touch(s, last, messages, state, timeout)
  if number(last) > number(s.last) then s.last = last end
  s.count = s.count + number(messages)
  if state ~= '' then s.state = state end
  if timeout ~= '' then s.timeout = timeout end
  write(s)
  -- After something else was written, so that a server that is out of memory lets it pass.
  if timeout ~= '' then note_longest(timeout) end
end

local function is_leased(mark) return string.find(mark, 'x') ~= nil end

-- The other instances that have the session: whether one has the lease; the lag because of them; the names of the
-- living, and the ids of the dead.
local function others(s, me)
  local found = {leased = false, lag = '0', names = {}, dead = {}}
  for id, mark in pairs(s.holders) do
    if id ~= me then
      if is_alive(id) then
        local instance = known_instance(id)
        local lag = is_leased(mark) and 'inf' or instance.lag
        if number(lag) > number(found.lag) then found.lag = lag end
        found.leased = found.leased or is_leased(mark)
        table.insert(found.names, instance.name)
      else
        table.insert(found.dead, id)
      end
    end
  end
  table.sort(found.names)
  return found
end

-- Should an instance whose lease this ends turn out to be alive, what it saves is of an older version.
local function drop_dead_instances(s, dead)
  local fenced = false
  for _, id in ipairs(dead) do
    redis.call('HDEL', s.key, '@' .. id)
    local instance = known_instance(id)
    fenced = fenced or (is_leased(s.holders[id]) and not (instance and instance.lag == 'left'))
    s.holders[id] = nil
  end
  if fenced then
    s.version, s.saver = s.version + 1, ''
    write(s)
  end
end

local function hold(s, instance, mark)
  wrote = true
  -- So that a server that is out of memory lets it pass.
  redis.call('HDEL', s.key, '@' .. instance)
  redis.call('HSET', s.key, '@' .. instance, mark)
  s.holders[instance] = mark
end

-- What an instance with this mark is told of the session. While another one has the lease, it may still change the
-- session: the copy here is stale once that lease has ended.
local function report(s, found, mark)
  local stale = string.find(mark or '', 'o') and not found.leased
  return {meta_of(s), s.data, found.lag, stale and 1 or 0, unpack(found.names)}
end

local function is_past(limit, at) return at - limit > 0.5e-6 end

local function is_over(s, at, age)
  return is_past(life_end(s), at) or is_past(number(s.last) + math.min(number(s.timeout), age), at)
end

-- ---- Operations: what each is given after the first three arguments, and what it gives

local operations = {}

-- instance, term, lag, name -> the server's time, and whether the term before had not run out
function operations.heartbeat(instance, term, lag, name)
  local known = known_instance(instance)
  -- It left while its heartbeat was on its way.
  if known and known.lag == 'left' then return {string.format('%.6f', now), 1} end
  local kept = begin_term(instance, term, lag, name)
  keep_indexes(DAY_MS)
  return {string.format('%.6f', now), kept and 1 or 0}
end

-- -> the server's time, and the layout that the store has, or "" while there is none
function operations.probe()
  return {string.format('%.6f', now), redis.call('GET', LAYOUT) or ''}
end

-- instance, term, lag, name, layout -> as heartbeat, or the layout that the store has; forgets instances that have been
-- dead for long
function operations.join(instance, term, lag, name, layout)
  local found = redis.call('GET', LAYOUT)
  if found and found ~= layout then return found end
  if not found then redis.call('SET', LAYOUT, layout) end
  for id, other in pairs(all_instances()) do
    if now > other.until_ + 360 * other.term then redis.call('HDEL', INSTANCES, id) end
  end
  return operations.heartbeat(instance, term, lag, name)
end

-- An instance that left is remembered for a while: what it had is free at once, and its records need no new version.
function operations.leave(instance)
  local known = known_instance(instance)
  if known then write_instance(instance, now + known.term, known.term, 'left', '') end
  return 'OK'
end

-- id, meta, data, instance -> the id of the session that has its id or its name, or ""
function operations.create(id, meta, data, instance)
  local s = parsed(id, meta)
  if redis.call('EXISTS', s.key) == 1 then return id end
  local named = NAMES and s.name ~= '' and redis.call('HGET', NAMES, s.name)
  if named and named ~= id then
    if redis.call('EXISTS', key_of(named)) == 1 then return named end
    redis.call('HDEL', NAMES, s.name)
  end
  s.holders, s.saver = {}, token
  insert(s, data)
  hold(s, instance, '')
  return ''
end

-- id, instance, token: undo a creation whose answer was lost, unless another instance has the session
--   -> whether there is none now
function operations.undo_create(id, instance, unheard)
  local s = session(id)
  if not s then return true end
  if s.saver ~= unheard or #others(s, instance).names > 0 then return false end
  remove(s)
  return true
end

function operations.load(id, instance)
  local s = session(id)
  if not s then return false end
  return report(s, others(s, instance), s.holders[instance])
end

function operations.find(name)
  local id = redis.call('HGET', NAMES, name)
  return id and redis.call('EXISTS', key_of(id)) == 1 and id
end

-- id, instance, "x" if it is to get the lease, or "" -> as load, or "busy"
function operations.attach(id, instance, wanted)
  local s = session(id)
  if not s then return false end
  local found = others(s, instance)
  if wanted ~= '' and found.leased then return 'busy' end
  drop_dead_instances(s, found.dead)
  local mark = s.holders[instance]
  if wanted ~= '' then
    hold(s, instance, wanted .. (string.match(mark or '', 'o') or ''))
    for id, _ in pairs(s.holders) do
      if id ~= instance then hold(s, id, 'o') end
    end
  elseif not mark then
    hold(s, instance, found.leased and 'o' or '')
  end
  return report(s, found, mark)
end

-- instance, ids: after a term that ran out, and now and then so that nothing of a living instance goes by itself.
function operations.attach_again(instance, ...)
  for _, id in ipairs({...}) do
    local s = peek(id)
    if s then
      -- First, so that a server that is out of memory lets the other pass.
      keep_with_indexes(s)
      -- If it was taken for dead, others may have had the session.
      redis.call('HSETNX', s.key, '@' .. instance, 'o')
    end
  end
  return 'OK'
end

function operations.detach(instance, ...)
  for _, id in ipairs({...}) do redis.call('HDEL', key_of(id), '@' .. instance) end
  return 'OK'
end

function operations.release(id, instance)
  local key, field = key_of(id), '@' .. instance
  if is_leased(redis.call('HGET', key, field) or '') then
    -- As in `hold`.
    redis.call('HDEL', key, field)
    redis.call('HSET', key, field, '')
  end
  return 'OK'
end

-- id, instance whose lease ends ("" for none), version, saves whose answers were lost as "token:messages", "+" and data or
-- "" for only a touch, last_active, messages, state, timeout -> "saved", or "absent", or "conflict"; and the version
function operations.save(id, instance, version, unheard, data, last, messages, state, timeout)
  local s, result = peek(id), {'absent', 0}
  if s and data == '' then
    touch(s, last, messages, state, timeout)
    result = {'saved', number(version)}
  elseif s then
    local ours = s.saver ~= '' and string.match(unheard, s.saver .. ':(%d+)')
    if s.version == number(version) or ours then
      -- Its messages come again, with this.
      if ours then s.count = s.count - number(ours) end
      s.version = s.version + 1
      s.saver = token
      redis.call('HSET', s.key, 'd', string.sub(data, 2))
      touch(s, last, messages, state, timeout)
      result = {'saved', s.version}
    else
      result = {'conflict', s.version}
    end
  end
  -- Last, so that a server that is out of memory refuses the data.
  if instance ~= '' then operations.release(id, instance) end
  return result
end

-- five for each: id, last_active, messages, state, timeout -> the ids that are absent
function operations.touch(...)
  local absent, arguments = {}, {...}
  for i = 1, #arguments, 5 do
    local s = peek(arguments[i])
    if s then
      touch(s, arguments[i + 1], arguments[i + 2], arguments[i + 3], arguments[i + 4])
    else
      table.insert(absent, arguments[i])
    end
  end
  return absent
end

-- id, new id, instance -> "renamed", or "absent", or "busy", or "taken"
function operations.rename(id, new_id, instance)
  local s = session(id)
  if not s then return 'absent' end
  local found = others(s, instance)
  if found.leased then return 'busy' end
  if redis.call('EXISTS', key_of(new_id)) == 1 then return 'taken' end
  drop_dead_instances(s, found.dead)
  local mark = string.gsub(s.holders[instance] or '', 'o', '')
  remove(s)
  s.id, s.key, s.saver = new_id, key_of(new_id), token
  insert(s, s.data)
  hold(s, instance, mark)
  return 'renamed'
end

-- id, new id, instance, token: undo a renaming whose answer was lost.
function operations.undo_rename(id, new_id, instance, unheard)
  local s = session(new_id)
  if s and s.saver == unheard and redis.call('EXISTS', key_of(id)) == 0 then operations.rename(new_id, id, instance) end
  return 'OK'
end

-- instance ("" for none), now, and three for each: id, last activity that is known ("" to delete it in any case), and
-- session timeout that is known ("" if none is) -> two for each that was deleted: id, name
function operations.delete(instance, at, ...)
  local deleted, arguments = {}, {...}
  local function delete(s)
    remove(s)
    table.insert(deleted, s.id)
    table.insert(deleted, s.name)
  end
  for i = 1, #arguments, 3 do
    local id, known_last, known_timeout = arguments[i], arguments[i + 1], arguments[i + 2]
    if known_last == '' then
      local s = peek(id)
      if s then delete(s) end
    else
      local s = session(id)
      local found = s and others(s, instance)
      local is_known = s and number(s.last) <= number(known_last)
        and (known_timeout == '' or number(s.timeout) == number(known_timeout))
      if s and #found.names == 0 and (is_known or is_over(s, number(at), math.huge)) then
        delete(s)
      elseif s then
        redis.call('HDEL', s.key, '@' .. instance)
        drop_dead_instances(s, found.dead)
      end
    end
  end
  return deleted
end

-- Ids of sessions that may have expired, in the order in which they do, without the first `skip`: no more than one step
-- may look at; and whether these are all.
local function candidates(at, age, skip)
  local bound = at
  if age < math.huge then bound = math.max(at, at - age + number(redis.call('GET', LONGEST) or '0')) end
  local ids = redis.call('ZRANGEBYSCORE', DUE, '-inf', string.format('%.17g', bound), 'LIMIT', skip, WALK)
  return ids, #ids < WALK
end

-- Calls `act` with each session that has expired and is in no living instance's memory, until it gives false. Gives how
-- many other sessions there were, and whether it was ended by `act`.
local function each_expired(ids, at, age, act)
  local others_seen = 0
  for _, id in ipairs(ids) do
    local s = session(id)
    if not s then
      forget(id)
    elseif not is_over(s, at, age) or #others(s, nil).names > 0 then
      others_seen = others_seen + 1
    elseif not act(s) then
      return others_seen, true
    end
  end
  return others_seen, false
end

-- now, limit, age, how many to pass over -> how many to pass over next ("" once there are no more), and three for each
-- deleted one: id, record, data
function operations.delete_expired(at, limit, age, skip)
  local deleted = {''}
  local ids, all = candidates(number(at), number(age), number(skip))
  local kept, stopped = each_expired(ids, number(at), number(age), function(s)
    remove(s)
    table.insert(deleted, s.id)
    table.insert(deleted, meta_of(s))
    table.insert(deleted, s.data)
    return #deleted < 1 + 3 * number(limit)
  end)
  if not (all or stopped) then deleted[1] = string.format('%.0f', number(skip) + kept) end
  return deleted
end

-- now, age, how many to pass over -> how many to pass over next ("" once there are no more), and how many have expired
function operations.count_expired(at, age, skip)
  local count = 0
  local ids, all = candidates(number(at), number(age), number(skip))
  local others_seen = each_expired(ids, number(at), number(age), function(s)
    count = count + 1
    return true
  end)
  return {all and '' or string.format('%.0f', number(skip) + others_seen + count), count}
end

-- id after which to begin, limit -> three for each: id, record, data
function operations.page(after, limit)
  local found = {}
  local from = after == '' and '-' or '(' .. after
  while #found < 3 * number(limit) do
    local ids = redis.call('ZRANGEBYLEX', IDS, from, '+', 'LIMIT', 0, number(limit) - #found / 3)
    if #ids == 0 then break end
    for _, id in ipairs(ids) do
      local fields = redis.call('HMGET', key_of(id), 'm', 'd')
      if fields[1] then
        table.insert(found, id)
        table.insert(found, fields[1])
        table.insert(found, fields[2])
      end
    end
    from = '(' .. ids[#ids]
  end
  return found
end

-- ---- Names that are in another slot than their sessions: "id", or "id|until" while the session is being created

local function claim_of(name)
  local text = redis.call('HGET', NAMES, name)
  if not text then return nil end
  local id, until_ = string.match(text, '^(.-)|(.*)$')
  return id or text, until_ and number(until_) >= now
end

-- name, id, id that turned out to have it no more ("" if none), for how many seconds
--   -> the id that has the name, or "" if that is the new one now; and 1 if that session is just being created
function operations.claim(name, id, instead, seconds)
  local other, is_new = claim_of(name)
  if other and other ~= instead then return {other, is_new and 1 or 0} end
  wrote = true
  redis.call('HSET', NAMES, name, id .. '|' .. string.format('%.6f', now + number(seconds)))
  keep(NAMES, DAY_MS)
  return {'', 1}
end

-- name, id, new id, for how many ms -> whether it was that one's still
function operations.point(name, id, new_id, ms)
  if claim_of(name) ~= id then return 0 end
  redis.call('HSET', NAMES, name, new_id)
  keep(NAMES, number(ms) + DAY_MS)
  return 1
end

function operations.who(name)
  local id, is_new = claim_of(name)
  return not is_new and id
end

-- two for each: name, id
function operations.free(...)
  local arguments = {...}
  for i = 1, #arguments, 2 do
    if claim_of(arguments[i]) == arguments[i + 1] then redis.call('HDEL', NAMES, arguments[i]) end
  end
  return 'OK'
end

-- ---- A session that moves to another slot, with another id

-- id, instance -> "absent", or "busy", or record, data and the instance's mark, which is that of the lease from now on
function operations.seize(id, instance)
  local s = session(id)
  if not s then return 'absent' end
  local found = others(s, instance)
  if found.leased then return 'busy' end
  drop_dead_instances(s, found.dead)
  local mark = s.holders[instance] or '-'
  hold(s, instance, 'x')
  return {meta_of(s), s.data, mark}
end

-- id, instance, mark: what was seized gets the mark back that it had, or none if that was "-".
function operations.mark(id, instance, mark)
  if redis.call('HDEL', key_of(id), '@' .. instance) == 1 and mark ~= '-' then
    redis.call('HSET', key_of(id), '@' .. instance, mark)
  end
  return 'OK'
end

-- id -> the token of its last save or renaming
function operations.saver(id)
  local s = peek(id)
  return s and s.saver
end

-- id, record, data, instance, its mark, token of the renaming -> "taken" or "adopted"
function operations.adopt(id, meta, data, instance, mark, saver)
  local s = parsed(id, meta)
  if redis.call('EXISTS', s.key) == 1 then return 'taken' end
  s.holders, s.saver = {}, saver
  insert(s, data)
  hold(s, instance, (string.gsub(mark, '[o-]', '')))
  return 'adopted'
end

-- id, version -> "absent", or "changed", or "given up"
function operations.give_up(id, version)
  local s = peek(id)
  if not s then return 'absent' end
  if s.version ~= number(version) then return 'changed' end
  remove(s)
  return 'given up'
end

-- ---- One call

if token ~= '' then
  local heard = redis.call('GET', RESULT)
  if heard then return cmsgpack.unpack(heard) end
end
local holder = HOLDERS[operation]
if holder and is_lapsed(ARGV[FIRST - 1 + holder]) then return redis.error_reply('LAPSED is the term of this instance') end
local result = operations[operation](unpack(ARGV, FIRST))
-- Where nothing was done there is nothing to keep, and a server that is out of memory would refuse it.
if token ~= '' and wrote then
  redis.call('SET', RESULT, cmsgpack.pack(result), 'PX', result_ms)
end
return result
